#!/usr/bin/env python3
"""Writes runtime/tokenizer/unicode_tab.inc.

The reference (`tokenizers` 0.23) mixes three editions of Unicode, and so must we:
  * \\p{L}, \\p{N} and \\s of its regular expressions: Unicode 16 (Oniguruma 6.9.10);
  * the Digits pre-tokenizer: Unicode 17 (Rust's char::is_numeric);
  * NFC: Unicode 9 (unicode-normalization-alignments 0.1.12).
Each edition comes from the `unicodedata2` release of that number, fetched by pip into a temporary folder. Release
9.0.0 does not compile against a present-day Python, so that its table of records is read from its C source: it says
which code points were assigned in Unicode 9. Decompositions and combining classes of assigned code points never change
(Unicode stability policy), so that they are taken from edition 16.

usage: tests/tools/make_unicode_tables.py [OUTPUT]
"""
import importlib.util
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

LAST = 0x110000
BLOCK = 128
LETTER, NUMBER, SPACE, DIGIT, RECOMPOSES, MARK = 1, 2, 4, 8, 16, 32
# White_Space; Python has no such property, and the set has not changed since Unicode 6.3.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def is_scalar(code):
    return not 0xD800 <= code < 0xE000


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def edition(folder, version):
    """The unicodedata2 module of `version`; several can be loaded side by side."""
    target = folder / version
    pip("install", "--no-deps", "--target", str(target), f"unicodedata2=={version}")
    (path,) = target.glob("unicodedata2*.so")
    spec = importlib.util.spec_from_file_location("unicodedata2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.unidata_version == version, module.unidata_version
    return module


def c_array(source, name):
    return re.search(rf"\b{name}\[\] = \{{(.*?)\n\}};", source, re.S).group(1)


def unicode9(folder):
    """(assigned, combining class) of every code point in Unicode 9."""
    pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder),
        "unicodedata2==9.0.0")
    with tarfile.open(folder / "unicodedata2-9.0.0.tar.gz") as archive:
        source = archive.extractfile("unicodedata2-9.0.0/unicodedata2/unicodedata_db.h").read().decode()
    assert '#define UNIDATA_VERSION "9.0.0"' in source
    records = [tuple(map(int, row.split(","))) for row in
               re.findall(r"\{([^{}]*)\}", c_array(source, "_PyUnicode_Database_Records"))]
    shift = int(re.search(r"#define SHIFT (\d+)", source).group(1))
    first = list(map(int, re.findall(r"\d+", c_array(source, "index1"))))
    second = list(map(int, re.findall(r"\d+", c_array(source, "index2"))))
    rows = [records[second[(first[code >> shift] << shift) + (code & ((1 << shift) - 1))]] for code in range(LAST)]
    return [row[0] != 0 for row in rows], [row[1] for row in rows]


def decomposition(u, code):
    """Canonical single-step decomposition as a list of code points; empty when there is none."""
    fields = u.decomposition(chr(code)).split()
    return [] if not fields or fields[0].startswith("<") else [int(field, 16) for field in fields]


def tables(folder):
    u16 = edition(folder, "16.0.0")
    u17 = edition(folder, "17.0.0")
    assigned, combining = unicode9(folder)
    decompositions, compositions = {}, {}
    for code in filter(lambda c: is_scalar(c) and assigned[c], range(LAST)):
        assert u16.combining(chr(code)) == combining[code], hex(code)
        parts = decomposition(u16, code)
        if parts:
            assert len(parts) <= 2
            decompositions[code] = parts
            if len(parts) == 2 and u16.normalize("NFC", chr(code)) == chr(code):
                compositions[tuple(parts)] = code
    seconds = {second for _, second in compositions} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    flags = [0] * LAST
    for code in filter(is_scalar, range(LAST)):
        category = u16.category(chr(code))[0]
        flags[code] = ((category == "L") * LETTER | (category == "N") * NUMBER | (code in SPACES) * SPACE |
                       (u17.category(chr(code))[0] == "N") * DIGIT)
        changes = code in decompositions and u16.normalize("NFC", chr(code)) != chr(code)
        flags[code] |= (changes or code in seconds) * RECOMPOSES | (combining[code] != 0) * MARK
    return flags, combining, decompositions, compositions


def write_numbers(out, declaration, numbers):
    out.append(f"{declaration} = {{")
    line = "   "
    for number in numbers:
        text = f" {number},"
        if len(line) + len(text) > 120:
            out.append(line)
            line = "   "
        line += text
    out.extend([line, "};"])


def main():
    path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                        pathlib.Path(__file__).parents[2] / "runtime/tokenizer/unicode_tab.inc")
    with tempfile.TemporaryDirectory() as folder:
        flags, combining, decompositions, compositions = tables(pathlib.Path(folder))
    blocks, index = {}, []
    for start in range(0, LAST, BLOCK):
        block = tuple(flags[start:start + BLOCK])
        index.append(blocks.setdefault(block, len(blocks)))
    assert len(blocks) <= 0x10000
    runs = []
    for code in range(LAST):
        if combining[code]:
            if runs and runs[-1][1] == code - 1 and runs[-1][2] == combining[code]:
                runs[-1][1] = code
            else:
                runs.append([code, code, combining[code]])
    out = ["/* Generated by tests/tools/make_unicode_tables.py; do not edit. Unicode 16 (letters, numbers, spaces), 17",
           " * (digits) and 9 (normalisation). Data: Unicode Character Database, Copyright Unicode, Inc.",
           " * (https://www.unicode.org/license.txt). */"]
    kind = "uint8_t" if len(blocks) <= 256 else "uint16_t"
    write_numbers(out, f"const {kind} unicode_index[{len(index)}]", index)
    write_numbers(out, f"const uint8_t unicode_blocks[{len(blocks) * BLOCK}]",
                  [number for block in blocks for number in block])
    write_numbers(out, f"static const struct mark_run mark_runs[{len(runs)}]",
                  ["{0x%X, 0x%X, %d}" % tuple(run) for run in runs])
    write_numbers(out, f"static const struct decomposition decompositions[{len(decompositions)}]",
                  ["{0x%X, 0x%X, 0x%X}" % (code, parts[0], parts[1] if len(parts) == 2 else 0)
                   for code, parts in sorted(decompositions.items())])
    write_numbers(out, f"static const struct composition compositions[{len(compositions)}]",
                  ["{0x%X, 0x%X, 0x%X}" % (*pair, code) for pair, code in sorted(compositions.items())])
    path.write_text("\n".join(out) + "\n")
    print(f"{path}: {len(blocks)} blocks, {len(runs)} runs of marks, {len(decompositions)} decompositions, "
          f"{len(compositions)} compositions")


if __name__ == "__main__":
    main()
