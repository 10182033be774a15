#!/usr/bin/env python3
"""Looks whether kernels keep anything in local memory (spilled registers, arrays that are indexed at run time), which is
memory behind the caches' latency.

    python3 check_local_memory.py CUOBJDUMP PLUGIN...

Prints a line per plug-in and architecture, and fails with the names of kernels that use more than ALLOWED.
"""
import collections
import re
import subprocess
import sys

# (pattern of the kernel, bytes a thread, why that is no harm)
ALLOWED = (
    ("attention_generic_kernel", 24, "stored and read outside the loop over positions"),
    (r"reduce_norm_kernel<\w+, 8\b", 64, "sums of eight ranks: 1,024 threads leave each 64 registers"),
)


def allowed(name):
    return next((limit for pattern, limit, _ in ALLOWED if re.search(pattern, name)), 0)


def demangle(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines()))


def usages(cuobjdump, plugin):
    """(architecture, mangled name, registers, bytes of local memory) of every kernel."""
    text = subprocess.run([cuobjdump, "-res-usage", plugin], capture_output=True, text=True, check=True).stdout
    arch, name, found = None, None, []
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (.+):$", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            found.append((arch, name, int(match[1]), int(match[2]) + int(match[3])))
    return found


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    passed = failed = 0
    for plugin in sys.argv[2:]:
        found = usages(sys.argv[1], plugin)
        names = demangle([name for _, name, _, _ in found])
        by_arch = collections.defaultdict(list)
        for arch, name, registers, local in found:
            by_arch[arch].append((names[name], registers, local))
        if not by_arch:
            failed += 1
            print(f"FAIL {plugin} holds no code")
        for arch, kernels in sorted(by_arch.items()):
            users = [kernel for kernel in kernels if kernel[2] > 0]
            bad = [(name, local) for name, _, local in users if local > allowed(name)]
            print(f"{plugin} {arch}: {len(kernels)} kernels, at most {max(k[1] for k in kernels)} registers, "
                  f"{len(users)} use local memory, {len(bad)} too much")
            for name, local in bad:
                print(f"FAIL {arch} {name}: {local} bytes of local memory a thread")
            passed += not bad
            failed += bool(bad)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
