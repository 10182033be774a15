#!/usr/bin/env python3
"""Runs each fuzz target until 10 million runs or 20 minutes of processor time, whichever comes first.

    python3 tests/fuzz/long.py [--jobs N] [TARGET ...]     after: . launcher/install.sh; tandem_build fuzz all_fuzz

The corpus grows in a temporary folder, never in the checkout. A finding is left beside it and named.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS = 10_000_000
CPU_SECONDS = 20 * 60
ROUND_S = 120


def fuzz(program, folder):
    """Returns (runs, processor seconds, clean). Rounds are short because libFuzzer counts wall time only."""
    corpus = folder / program.name
    shutil.copytree(ROOT / "tests/fuzz/corpus" / program.name.removeprefix("fuzz_"), corpus)
    runs, used = 0, 0.0
    while runs < RUNS and used < CPU_SECONDS:
        log = folder / f"{program.name}.log"
        with open(log, "wb") as out:
            child = subprocess.Popen(
                [program, f"-runs={RUNS - runs}", f"-max_total_time={ROUND_S}", "-max_len=4096", "-timeout=300",
                 "-rss_limit_mb=4096", "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={folder}/{program.name}-",
                 corpus], stdout=out, stderr=out)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        used += usage.ru_utime + usage.ru_stime
        text = log.read_text(errors="replace")
        done = re.search(r"number_of_executed_units:\s*(\d+)", text)
        runs += int(done.group(1)) if done else 0
        if child.returncode != 0:
            print(text[-4000:], flush=True)
            return runs, used, False
    return runs, used, True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="as fuzz_yaml; all when none is given")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    programs = sorted(p for p in (ROOT / "build/fuzz/fuzz").glob("fuzz_*") if os.access(p, os.X_OK) and p.is_file())
    if args.targets:
        programs = [p for p in programs if p.name in args.targets]
    if not programs:
        sys.exit("no such target under build/fuzz/fuzz: build them first")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tandem-fuzz-"))
    passed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(fuzz, p, folder): p.name for p in programs}
        for future in concurrent.futures.as_completed(waiting):
            runs, used, clean = future.result()
            print(f"{waiting[future]:24} {runs:>10} runs {used / 60:6.1f} core-minutes  {'clean' if clean else 'FAILED'}", flush=True)
            passed, failed = passed + clean, failed + (not clean)
    print(f"{folder}: {passed} passed, {failed} failed")
    if failed == 0:
        shutil.rmtree(folder)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
