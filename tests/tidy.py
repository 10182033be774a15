"""House rules that a compiler does not check: who may include whom, file length, banned calls.

Prints one line per violation and, last, "N passed, N failed", one test per rule."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Layer -> prefixes of project headers it may include (its own folder is always allowed).
BASE = ["runtime/base/"]
LAYERS = {
    "runtime/base": [],
    "runtime/format": BASE,
    "runtime/wire": BASE,
    "runtime/http": BASE,
    "runtime/journal": BASE,
    "runtime/tokenizer": BASE + ["runtime/format/"],
    "kernels": BASE + ["kernels/"],
    "parallel": BASE + ["kernels/kernels.h", "kernels/plugin.h", "kernels/cuda/handles.h",
                        "kernels/cuda/launch.cuh", "kernels/cuda/block.cuh", "kernels/cuda/rows.cuh",
                        "kernels/cuda/cuda_device.h"],
    "runtime/engine": BASE + ["runtime/wire/", "runtime/journal/"],
    "runtime/request": BASE + ["runtime/engine/engine.h", "runtime/journal/", "runtime/tokenizer/",
                               "runtime/format/", "runtime/wire/"],
    "runtime/model": BASE + ["runtime/format/", "kernels/kernels.h", "parallel/comm.h"],
    "runtime/worker": BASE + ["runtime/model/", "runtime/format/", "kernels/kernels.h", "parallel/comm.h",
                              "runtime/wire/"],
    "runtime/server": BASE + ["runtime/request/", "runtime/engine/", "runtime/http/", "runtime/wire/",
                              "runtime/journal/", "runtime/tokenizer/", "runtime/format/"],
    "runtime/client": ["runtime/base/status.h", "runtime/base/bytes.h", "runtime/base/hash.h", "runtime/wire/tsp.h"],
    "launcher": ["runtime/", "kernels/kernels.h", "parallel/", "launcher/"],
}

# What third-party headers' names look like -> the folders and files that may see them.
CUDA = ["kernels/cuda/", "parallel/comm_nccl.c", "parallel/comm_p2p"]
THIRD_PARTY = {
    r"jansson\.h": ["runtime/format/", "runtime/request/", "launcher/"],
    r"llhttp\.h": ["runtime/http/"],
    r"pcre2\.h": ["runtime/tokenizer/"],
    r"uv\.h": ["runtime/server/", "runtime/client/include/tandem/uv.h", "launcher/"],
    r"yaml\.h": ["launcher/"],
    r"(cuda|cublas|mma|cooperative_groups).*": CUDA,
    r"nccl\.h": ["parallel/comm_nccl.c"],
    r"kernels/cuda/.*": CUDA,
}

BANNED = {
    r"\b(strcpy|strcat|sprintf|vsprintf|gets|strtok|atoi|atol|atof)\s*\(": "bounded or checked calls only",
    r"\b(TODO|FIXME|XXX|HACK)\b": "finish it, or leave it out",
}
MAX_LINES = 800
MAX_COLUMNS = 120


def sources():
    for pattern in ("*.c", "*.h", "*.cu", "*.cuh"):
        for path in sorted(ROOT.glob(f"*/**/{pattern}")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("build/"):
                yield name, path.read_text(encoding="utf-8").splitlines()


def layer_of(name):
    fitting = [layer for layer in LAYERS if name.startswith(layer + "/")]
    return max(fitting, key=len) if fitting else None


def check_includes(name, lines):
    layer = layer_of(name)
    if layer is None:
        return
    for number, line in enumerate(lines, 1):
        found = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if not found:
            continue
        quote, header = found.groups()
        if quote == '"' and "/" not in header:
            yield f"{name}:{number}: \"{header}\" is not written from the repository root"
        elif quote == '"' and not header.startswith(layer + "/") and not any(header.startswith(p) for p in LAYERS[layer]):
            yield f"{name}:{number}: {layer} may not include {header}"
        for pattern, places in THIRD_PARTY.items():
            if re.fullmatch(pattern, header) and not name.startswith(tuple(places)):
                yield f"{name}:{number}: {header} is for {', '.join(places)} only"


def check_length(name, lines):
    if len(lines) > MAX_LINES:
        yield f"{name}: {len(lines)} lines, {MAX_LINES} are the limit"
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            yield f"{name}:{number}: {len(line)} columns, {MAX_COLUMNS} are the limit"


def check_banned(name, lines):
    if name.startswith("tests/"):
        return
    for number, line in enumerate(lines, 1):
        for pattern, reason in BANNED.items():
            if re.search(pattern, line):
                yield f"{name}:{number}: {line.strip()[:60]}: {reason}"


def main():
    failed = 0
    rules = (check_includes, check_length, check_banned)
    everything = list(sources())
    for rule in rules:
        violations = [text for name, lines in everything for text in rule(name, lines)]
        for text in violations:
            print(text)
        failed += bool(violations)
        print("FAIL" if violations else "ok  ", rule.__name__)
    print(f"{len(rules) - failed} passed, {failed} failed")
    return failed > 0


sys.exit(main())
