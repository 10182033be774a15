#!/usr/bin/env python3
"""Compares our tokenizer with the reference (`tokenizers` of PyPI) on made-up strings, and both speeds on one text.

For each model directory: COUNT strings are encoded by both, and ids that came out and random ids are decoded by both.
Prints the number of differences, the first few of them, and MB/s of both, on one thread each. Exits 1 when there is a
difference.

usage: tests/tools/tokenizer_diff.py --model DIR [--model DIR ...] [--count 200000] [--seed 1]
                                     [--program "build/release/tandem tokenize --model {dir}"]
                                     [--bench build/release/benchmarks/bench_tokenizer] [--text FILE]
The program reads lines {"text": ...} or {"ids": [...]} and answers each by {"ids": [...]} or {"text": ...}.
"""
import argparse
import glob
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402

SCRIPTS = [(0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x58F),
           (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F), (0x900, 0x97F), (0x980, 0x9FF), (0xA80, 0xAFF),
           (0xB80, 0xBFF), (0xC80, 0xCFF), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F),
           (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1780, 0x17FF), (0x1E00, 0x1EFF),
           (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x20D0, 0x20FF), (0x2100, 0x218F),
           (0x2190, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x257F), (0x2600, 0x27BF), (0x2E80, 0x2FDF), (0x3000, 0x303F),
           (0x3040, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF), (0x3400, 0x3600), (0x4E00, 0x9FFF), (0xA000, 0xA4CF),
           (0xAC00, 0xD7A3), (0xD7B0, 0xD7FF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFB50, 0xFDFF), (0xFE00, 0xFE6F),
           (0xFF00, 0xFFEF), (0x10000, 0x100FF), (0x10330, 0x1034F), (0x11000, 0x1107F), (0x11100, 0x1114F),
           (0x11DA0, 0x11DEF), (0x12000, 0x123FF), (0x16FE0, 0x16FFF), (0x1D100, 0x1D1FF), (0x1D400, 0x1D7FF),
           (0x1E900, 0x1E95F), (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x20100), (0x2F800, 0x2FA1F),
           (0x30000, 0x30100), (0xE0000, 0xE01EF)]
SPACES = ["\t", "\n", "\v", "\f", "\r", "\r\n", " ", "  ", "\x1c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003",
          "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"]
BITS = ["'s", "'S", "'\u017f", "'t", "'re", "'RE", "'ve", "'m", "'ll", "'lL", "'d", "'", "\u2019s", "''", "'r", "'l",
        "1", "12", "123", "1234567", "\u0663\u0664", "\u2167", "\u00bd", "\u00b2", "3.14", "a", "Z", "the", "\u00df",
        "_", "-", "--", ".", "...", ",", "(", ")", "{}", "/*", "\\", "\"", "<", ">", "<|", "|>", "\uff5c", "\u2581",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "e\u0301", "\u0041\u030a", "\u212b"]
WORDS = ("the of and model token straße naïve façade Привет мир こんにちは 世界 안녕하세요 مرحبا بالعالم שָׁלוֹם "
         "नमस्ते दुनिया สวัสดีชาวโลก "
         "Xin chào thế giới Γειά σου Κόσμε ábaco çalışma įžanga őrült žluťoučký kůň 漢字仮名交じり文 简体中文 繁體中文 "
         "func return if else while for int void char struct static const 0x1F 1e-9 a_b camelCase HTTPServer").split()


def scalar(rng, low, high):
    while True:
        code = rng.randint(low, high)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


class Maker:
    def __init__(self, rng, added, sources):
        self.rng, self.added, self.sources = rng, added, sources
        self.makers = [self.planes, self.script, self.words, self.code, self.mixture, self.marks, self.spaces,
                       self.runs, self.specials, self.specials, self.hangul]

    def planes(self):
        return "".join(scalar(self.rng, 0, 0x10FFFF) for _ in range(self.rng.randint(1, 30)))

    def script(self):
        low, high = self.rng.choice(SCRIPTS)
        out = []
        for _ in range(self.rng.randint(1, 60)):
            out.append(scalar(self.rng, low, high))
            if self.rng.random() < 0.15:
                out.append(self.rng.choice([" ", "\n", ".", " "]))
        return "".join(out)

    def words(self):
        return self.rng.choice([" ", " ", "  ", "\n", ", "]).join(self.rng.choices(WORDS, k=self.rng.randint(1, 25)))

    def code(self):
        source = self.rng.choice(self.sources)
        start = self.rng.randrange(max(1, len(source) - 10))
        return source[start:start + self.rng.randint(1, 400)]

    def mixture(self):
        pool = BITS + SPACES + WORDS
        return "".join(self.rng.choice(pool) for _ in range(self.rng.randint(1, 40)))

    def marks(self):
        """What normalisation reorders, joins, or must leave alone."""
        out = []
        for _ in range(self.rng.randint(1, 12)):
            low, high = self.rng.choice(SCRIPTS)
            out.append(scalar(self.rng, low, high) if self.rng.random() < 0.5 else self.rng.choice("aeiouAEIOUncsyzgq"))
            for _ in range(self.rng.choice([0, 1, 1, 2, 3, 6, 40 if self.rng.random() < 0.03 else 1])):
                low, high = self.rng.choice([(0x300, 0x36F), (0x300, 0x345), (0x483, 0x487), (0x591, 0x5C7),
                                             (0x610, 0x61A), (0x64B, 0x65F), (0x93C, 0x94D), (0x9BC, 0x9D7),
                                             (0xB3E, 0xB57), (0xDCA, 0xDDF), (0xE38, 0xE4E), (0xF71, 0xF84),
                                             (0x1DC0, 0x1DFF), (0x20D0, 0x20F0), (0x3099, 0x309A), (0xFE20, 0xFE2F),
                                             (0x110B9, 0x110BA), (0x11127, 0x11134), (0x1D165, 0x1D172),
                                             (0x1E000, 0x1E02A), (0x1E944, 0x1E94A), (0x8D3, 0x8FF)])
                out.append(scalar(self.rng, low, high))
        return "".join(out)

    def hangul(self):
        return "".join(scalar(self.rng, *self.rng.choice([(0x1100, 0x1112), (0x1161, 0x1175), (0x11A7, 0x11C2),
                                                          (0xAC00, 0xD7A3), (0x20, 0x40)]))
                       for _ in range(self.rng.randint(1, 20)))

    def spaces(self):
        return "".join(self.rng.choice(SPACES if self.rng.random() < 0.7 else BITS)
                       for _ in range(self.rng.randint(1, 30)))

    def runs(self):
        out = []
        for _ in range(self.rng.randint(1, 5)):
            out.append(self.rng.choice(BITS + SPACES + WORDS) * self.rng.choice([1, 2, 3, 5, 17, 33, 64, 200]))
        return "".join(out)

    def specials(self):
        """Added tokens, whole, cut and glued together, between anything else."""
        out = []
        for _ in range(self.rng.randint(1, 8)):
            token = self.rng.choice(self.added)
            roll = self.rng.random()
            if roll < 0.15:
                token = token[:self.rng.randint(1, len(token))]
            elif roll < 0.25:
                token = token[self.rng.randint(0, len(token) - 1):]
            out.append(token)
            if self.rng.random() < 0.7:
                out.append(self.rng.choice([self.mixture, self.words, self.marks, self.spaces])()[:20])
        return "".join(out)

    def make(self):
        return self.rng.choice(self.makers)()


def run_lines(program, lines):
    with tempfile.TemporaryFile() as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        file.seek(0)
        answer = subprocess.run(program, stdin=file, stdout=subprocess.PIPE, check=True).stdout
    answers = [json.loads(line) for line in answer.decode().split("\n")[:-1]]
    assert len(answers) == len(lines), (len(answers), len(lines))
    return answers


def compare(name, inputs, ours, theirs, show):
    wrong = [i for i in range(len(inputs)) if ours[i] != theirs[i]]
    print(f"  {name}: {len(inputs)} compared, {len(wrong)} differences")
    for i in wrong[:show]:
        print(f"    input {inputs[i]!r}\n    ours   {ours[i]!r}\n    theirs {theirs[i]!r}")
    return len(wrong)


def check_model(folder, program, count, seed, sources):
    reference = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    reference.no_truncation()
    reference.no_padding()
    added = [token.content for token in reference.get_added_tokens_decoder().values()] or ["<none>"]
    rng = random.Random(seed)
    maker = Maker(rng, added, sources)
    texts = [maker.make() for _ in range(count)]
    start = time.process_time()
    theirs = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    print(f"{folder}: {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB in {count} strings, "
          f"{sum(map(len, theirs))} ids, reference {time.process_time() - start:.1f} s")
    ours = [answer["ids"] for answer in run_lines(program, [{"text": text} for text in texts])]
    wrong = compare("encode", texts, ours, theirs, 5)
    size = reference.get_vocab_size()
    lists = theirs[::4] + [[rng.randrange(size) for _ in range(rng.randint(0, 20))] for _ in range(count // 4)]
    back = [reference.decode(ids, skip_special_tokens=False) for ids in lists]
    mine = [answer["text"] for answer in run_lines(program, [{"ids": ids} for ids in lists])]
    wrong += compare("decode", lists, mine, back, 3)
    return wrong


def reference_speed(folder, text):
    """The best of three rounds each over the text as one string and over its lines, which suits it better."""
    reference = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    best, ids = 0, 0
    for parts in ([text], text.splitlines(keepends=True)):
        for _ in range(3):
            start = time.perf_counter()
            counts = [len(reference.encode(part, add_special_tokens=False).ids) for part in parts]
            best = max(best, len(text.encode()) / 1e6 / (time.perf_counter() - start))
        ids = ids or sum(counts)
    return best, ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--count", type=int, default=200000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", default="build/release/tandem tokenize --model {dir}")
    parser.add_argument("--bench")
    parser.add_argument("--text", help="file for the speeds; without it Python's library and multilingual words")
    options = parser.parse_args()
    paths = sorted(glob.glob(f"{os.path.dirname(os.__file__)}/*.py"))[:120]
    sources = [pathlib.Path(path).read_text(encoding="utf-8", errors="ignore") for path in paths]
    wrong = 0
    for folder in options.model:
        program = [part.replace("{dir}", folder) for part in options.program.split()]
        wrong += check_model(folder, program, options.count, options.seed, sources)
        if options.bench:
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
                rng = random.Random(options.seed)
                text = "".join(source[:20000] + " ".join(rng.choices(WORDS, k=1500)) + "\n" for source in sources)
                if options.text:
                    text = pathlib.Path(options.text).read_text(encoding="utf-8")
                file.write(text)
                file.flush()
                speed, ids = reference_speed(folder, text)
                print(f"  reference: {speed:.1f} MB/s, {len(text.encode()) / 1e6:.1f} MB, {ids} ids (tokenizers "
                      f"{tokenizers.__version__}, one thread)", flush=True)
                subprocess.run([options.bench, folder, file.name], check=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
