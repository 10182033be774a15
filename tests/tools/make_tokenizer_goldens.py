#!/usr/bin/env python3
"""Writes tests/data/tokenizer/: what the references answer, for the tests of runtime/tokenizer.

  NAME/tokenizer.json  small tokenizers, trained here, that use what the big ones use and what they do not
  encode.jsonl         {"model", "text", "ids", "plain"}: ids with added tokens recognised in the text and without; no
                       "plain" where that is the same
  decode.jsonl         {"model", "ids", "text", "visible"}: text with special tokens and without
  chat.jsonl           {"template", "jinja", "bos"} and then its cases {"template", "messages", options..., "text" or
                       "error"}

References: `tokenizers` and `transformers` (render_jinja_template). Also prints size and hash of each template's
canonical text, as runtime/tokenizer/chat_render.c holds them. The texts of the Llama 3.1 and 3.2 templates are not ours
to ship: give the folder that holds them as llama-3.1.jinja and llama-3.2.jinja; without it their goldens are kept.

usage: tests/tools/make_tokenizer_goldens.py [FOLDER_OF_TEMPLATES]
"""
import copy
import json
import os
import pathlib
import random
import re
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers  # noqa: E402
from tokenizers import pre_tokenizers, trainers  # noqa: E402
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tokenizer_diff import BITS, SPACES, WORDS, Maker  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT / "tests/data/tokenizer"
SHARED = ROOT.parent / "shared/tokenizers"
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
CORPUS = [" ".join(WORDS), "the quick brown fox jumps over the lazy dog; it's 1234567 o'clock, don't they'll we've",
          "int main(void) { return 0; } /* straße naïve */\n\tfor (i = 0; i < 10; i++)\r\n    printf(\"%d\\n\", i);",
          "日本語のテキスト 中文文本 한국어 텍스트 русский текст ελληνικά"] * 4


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)


def train(name, steps, added, normalizer=None, alphabet=True, ignore_merges=False, string_merges=False, unk=None):
    tokenizer = Tokenizer(models.BPE(unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=[unk] if unk else [],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else [])
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([token for token in added if not token.special])
    tokenizer.add_special_tokens([token for token in added if token.special])
    file = json.loads(tokenizer.to_str())
    file["model"]["ignore_merges"] = ignore_merges
    if ignore_merges:  # an entry that no merge makes; the added tokens count on from the vocabulary's size
        file["model"]["vocab"]["Ġxyzzy"] = len(file["model"]["vocab"])
        for token in file["added_tokens"]:
            token["id"] += 1
    if string_merges:
        file["model"]["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]
    (DATA / name).mkdir(parents=True, exist_ok=True)
    (DATA / name / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False) + "\n")


def make_tokenizers():
    plain = [AddedToken("<|end|>", special=True, normalized=False), AddedToken("<think>", normalized=False),
             AddedToken("<|endless|>", special=True, normalized=False)]
    train("smollm", [pre_tokenizers.Digits(individual_digits=True), byte_level(True)], plain, alphabet=False)
    train("llama3", [split(LLAMA3), byte_level(False)], plain, ignore_merges=True, string_merges=True)
    train("qwen2", [split(QWEN2), byte_level(False)],
          plain + [AddedToken("café", normalized=True), AddedToken("e\u0301t", normalized=True, special=True),
                   AddedToken("<L>", lstrip=True, normalized=False), AddedToken("<R>", rstrip=True, normalized=False),
                   AddedToken("<N>", lstrip=True, rstrip=True, normalized=True), AddedToken("\n\n", normalized=False)],
          normalizer=normalizers.NFC())
    train("deepseek", [split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"),
                       split(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
                             r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(False)], plain)
    train("removed", [split(LLAMA3, "removed", True), pre_tokenizers.Split("-", "removed"),
                      pre_tokenizers.Digits(individual_digits=False), byte_level(False)], plain, alphabet=False,
          unk="<unk>")


def texts(rng, added, count):
    maker = Maker(rng, added, CORPUS)
    fixed = ["", " ", "Hello world", "don't DON'T don'\u017f I'LL 'tis", "a  b   c\n\n  d\t\te \r\n f ",
             "12 1234 1234567 \u0663\u0664\u0665 \u00bd\u2167", "\u11de0\U00011de1\U00016ff4", "a xyzzy, plugh xyzzyx",
             "e\u0301 \u0065\u0323\u0307 \u1100\u1161\u11a8 \u212b \u0958", "\u0e01\u0e49\u0e33" * 20,
             "\x00\x01\x7f\x85\xa0\u2028\ufeff\ufffd\U0010ffff", "x" * 100, "ab" * 300, " " * 70 + "x",
             "".join(BITS), "".join(SPACES), " ".join(WORDS), "  <L>  <R>  <N>  \n\n\n", "cafe\u0301 caf\u00e9 \u00e9t"]
    return fixed + ["".join(rng.sample(added, min(4, len(added)))) + " x"] + [maker.make()[:160] for _ in range(count)]


def make_ids():
    folders = {path.parent.name: path.parent for path in sorted(DATA.glob("*/tokenizer.json"))}
    folders["tandem-r1-tiny"] = ROOT / "configs/models/tandem-r1-tiny"
    folders.update({path.name: path for path in sorted(SHARED.glob("r1-*"))})
    with open(DATA / "encode.jsonl", "w") as encode, open(DATA / "decode.jsonl", "w") as decode:
        for name, folder in folders.items():
            reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
            bare = json.loads((folder / "tokenizer.json").read_text())
            bare["added_tokens"] = []
            bare["post_processor"] = None
            bare = Tokenizer.from_str(json.dumps(bare))
            rng = random.Random(7)
            added = [token.content for token in reference.get_added_tokens_decoder().values()]
            for text in texts(rng, added, 40):
                ids = reference.encode(text, add_special_tokens=False).ids
                plain = bare.encode(text, add_special_tokens=False).ids
                line = {"model": name, "text": text, "ids": ids, **({"plain": plain} if plain != ids else {})}
                encode.write(json.dumps(line) + "\n")
            size = reference.get_vocab_size()
            for length in list(range(0, 12)) * 3:
                ids = [rng.randrange(size + 3) for _ in range(length)] + rng.choices(
                    [reference.token_to_id(text) for text in added], k=1)
                decode.write(json.dumps({"model": name, "ids": ids,
                                         "text": reference.decode(ids, skip_special_tokens=False),
                                         "visible": reference.decode(ids, skip_special_tokens=True)}) + "\n")


def call(name, arguments, kind="function"):
    return {"type": kind, "id": "c1", "function": {"name": name, "arguments": arguments}}


def chats():
    user = {"role": "user", "content": "What is 407 - 1295? "}
    answer = {"role": "assistant", "content": "<think>\nborrow\n</think>\n\nIt is -888."}
    system = {"role": "system", "content": "  Be brief.\n"}
    again = {"role": "user", "content": "\u3000And <|im_end|> 2+2? \x1c"}
    calls = {"role": "assistant", "content": None, "tool_calls": [call("add", "{\"a\": 1}")]}
    two = {"role": "assistant", "content": None, "tool_calls": [call("add", "{\"a\": 1}"), call("mul", "{}")]}
    tool = {"role": "tool", "content": "{\"r\": \"3\\n\"}\t\u00e9 \x07", "tool_call_id": "c1"}
    part = {"role": "assistant", "content": "<think>\nFirst, "}
    yield [user], {}
    yield [user], {"add_generation_prompt": True}
    yield [system, user], {"add_generation_prompt": True}
    yield [user, answer, again], {"add_generation_prompt": True}
    yield [user, system, answer, again, {"role": "system", "content": "Other."}], {"add_generation_prompt": True}
    yield [user, calls, tool], {"add_generation_prompt": True}
    yield [user, two, tool, tool], {"add_generation_prompt": True}
    yield [user, calls, tool, answer, again, two], {"add_generation_prompt": True}
    yield [user, tool, again, tool, {"role": "assistant", "content": "Done."}], {}
    yield [user, tool], {"add_generation_prompt": True}
    yield [user, {"role": "assistant", "content": "a</think>b</think> c", "tool_calls": [call("x", "{}")]}], {}
    yield [user, {"role": "assistant", "content": None}], {"add_generation_prompt": True}
    yield [user, part], {"continue_final_message": True}
    yield [user, {"role": "assistant", "content": "It is  "}], {"continue_final_message": True}
    yield [user, {"role": "assistant", "content": "<think>\n\n</think>\n\nIt"}], {"continue_final_message": True}
    yield [user, answer], {"continue_final_message": True}
    yield [user], {"continue_final_message": True}
    yield [user, tool, {"role": "assistant", "content": "So"}], {"continue_final_message": True}
    yield [user, {"role": "assistant", "content": ""}], {"continue_final_message": True}
    yield [system], {"add_generation_prompt": True}
    yield [{"role": "user", "content": ""}], {"add_generation_prompt": True}
    yield [{"role": "user", "content": None}], {"add_generation_prompt": True}
    yield [user, {"role": "user", "content": "CONTINUE_FINAL_MESSAGE_TAG x"}], {"continue_final_message": True}
    yield [user], {"add_generation_prompt": True, "date_string": "01 Feb 2025"}
    yield [system, user, tool], {"add_generation_prompt": True, "date_string": "01 Feb 2025"}


def canonical(jinja):
    """As canonical_text() of runtime/tokenizer/chat_template.c."""
    text = re.sub(r"\{#-.*?#\}", "", jinja.replace("\\n", "\n"), flags=re.S)
    return re.sub(r"[ \t\r\n]+(?=\{[%{]-)", "", text).rstrip(" \t\r\n").encode()


def hash64(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 % 2**64
    value ^= value >> 33
    value = value * 0xff51afd7ed558ccd % 2**64
    return value ^ value >> 33


def make_chats(folder):
    revision_b = json.loads((ROOT / "configs/models/tandem-r1-tiny/tokenizer_config.json").read_text())["chat_template"]
    revision_a = revision_b.replace("{{'<｜Assistant｜><think>\\n'}}", "{{'<｜Assistant｜>'}}")
    assert revision_a != revision_b
    llama3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
              "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
              "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
              "{% endfor %}{% if "
              "add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
    chatml = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
              "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
              "<|im_end|>\n' }}{% endif %}"
              "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    templates = [("DeepSeek-R1 A", revision_a, True, "<｜begin▁of▁sentence｜>"),
                 ("DeepSeek-R1 B", revision_b, True, "<｜begin▁of▁sentence｜>"),
                 ("Llama 3", llama3, True, "<|begin_of_text|>"),
                 ("ChatML (SmolLM2)", chatml, True, "<|im_start|>"),
                 ("ChatML (SmolLM2)", chatml.replace("\n", "\\n"), True, "<|im_start|>")]
    kept = []
    for version in ("3.1", "3.2"):
        if folder:
            text = (pathlib.Path(folder) / f"llama-{version}.jinja").read_text()
            templates.append((f"Llama {version}", text, False, "<|begin_of_text|>"))
        else:
            kept += [line for line in open(DATA / "chat.jsonl") if f'"template": "Llama {version}"' in line]
    lines = []
    for name, jinja, ship, bos in templates:
        text = canonical(jinja)
        print(f"{name}: size {len(text)}, hash 0x{hash64(text):016x}")
        lines.append(json.dumps({"template": name, "jinja": jinja if ship else None, "bos": bos},
                                ensure_ascii=False) + "\n")
        for messages, options in chats():
            options = dict(options)
            if name == "Llama 3.2":
                options.setdefault("date_string", "05 Mar 2025")
            shown = {"template": name, "messages": messages, **options}
            if name.startswith("Llama") and any(message["content"] is None for message in messages):
                continue  # Jinja shows such content as the word None; ours refuses it
            if name.startswith("Llama 3.") and any("tool_calls" in message for message in messages):
                continue  # not served
            try:
                (shown["text"],), _ = render_jinja_template([copy.deepcopy(messages)], chat_template=jinja,
                                                            bos_token=bos, **options)
            except Exception as error:  # the template's own errors are of many classes
                shown["error"] = type(error).__name__
            lines.append(json.dumps(shown, ensure_ascii=False) + "\n")
    (DATA / "chat.jsonl").write_text("".join(lines + kept))


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    make_tokenizers()
    make_ids()
    make_chats(sys.argv[1] if len(sys.argv) > 1 else None)
    print(f"tokenizers {tokenizers.__version__}")
