"""Tandem and llama.cpp on the same model, machine and thread count, in turns: decode at batch 1 and 16, prefill of 512.

    python3 benchmarks/beside_llama.py BENCHMARKS DIR LLAMA_BIN_FOLDER GGUF... [--rounds N]

BENCHMARKS is the folder of bench_decode and bench_prefill, DIR the Hugging Face directory; LLAMA_BIN_FOLDER holds
llama-bench and llama-batched-bench, each GGUF is the same model in one number format. Every contender has one thread
for each core: tandem with TP 2 half of them in each rank. Item by item each has its turn, so that whatever else the
machine does disturbs them alike. Prints the median of the rounds, with the least and the most, and for batch 1 the
share of the read bandwidth: the bytes that a step must read, times steps a second, over the bandwidth that the same
program had measured right before, the median of the rounds again, and over the best of all rounds. Each figure goes to
standard error as it comes. Standard library only."""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys

STEPS = 64
CONTEXT = 8
PROMPT = 512


def run(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


class Tandem:
    best_bandwidth = 0  # GB/s, of all runs

    def __init__(self, folder, model, tp):
        self.name = f"tandem, TP {tp} x {os.cpu_count() // tp} threads"
        self.folder = folder
        self.flags = ["--model", model, "--backend", "cpu", "--tp", tp, "--no-ops", "--json"]
        self.tp = tp
        self.shares = []  # of the bandwidth, at batch 1

    def rows(self, program, *flags):
        """What the program prints, a row by its name."""
        lines = run(f"{self.folder}/{program}", *self.flags, *flags).splitlines()
        rows = {row["row"]: row for row in map(json.loads, lines)}
        Tandem.best_bandwidth = max(Tandem.best_bandwidth, rows["ceiling"]["read_gb_per_s"])
        return rows

    def decode(self, batch):
        rows = self.rows("bench_decode", "--batch", batch, "--context", CONTEXT, "--steps", STEPS)
        rate = rows["step"]["tokens_per_s"]
        if batch == 1:  # the floor is of one rank, and of its share of the bandwidth
            self.shares.append(rows["step"]["floor_ms"] * 1e-3 * rate)
            self.step_gb = rows["step"]["floor_ms"] * 1e-3 * rows["ceiling"]["read_gb_per_s"]
        return rate

    def prefill(self):
        rows = self.rows("bench_prefill", "--prompt", PROMPT, "--chunk", PROMPT, "--steps", 3)
        return rows["prompt"]["tokens_per_s"]


class Llama:
    def __init__(self, folder, gguf):
        self.name = f"llama.cpp, {os.path.basename(gguf)}"
        self.folder = folder
        self.gguf = gguf

    def bench(self, *flags):
        rows = json.loads(run(f"{self.folder}/llama-bench", "-m", self.gguf, "-t", os.cpu_count(), "-o", "json", *flags))
        return rows[0]["avg_ts"]

    def decode(self, batch):
        if batch == 1:
            return self.bench("-p", 0, "-n", STEPS, "-r", 1)
        table = run(f"{self.folder}/llama-batched-bench", "-m", self.gguf, "-t", os.cpu_count(), "-c", 4096, "-npp",
                    CONTEXT, "-ntg", STEPS, "-npl", batch)
        row = re.findall(rf"^\|\s*{CONTEXT}\s*\|.*$", table, re.M)[0].strip("|").split("|")
        return float(row[7])  # PP TG B N_KV T_PP S_PP T_TG S_TG ...

    def prefill(self):
        return self.bench("-p", PROMPT, "-n", 0, "-r", 3)


def cell(values):
    return f"{statistics.median(values):.1f} ({min(values):.0f}-{max(values):.0f})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("benchmarks")
    parser.add_argument("model")
    parser.add_argument("llama")
    parser.add_argument("gguf", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contenders = [Tandem(options.benchmarks, options.model, tp) for tp in (1, 2)]
    contenders += [Llama(options.llama, gguf) for gguf in options.gguf]
    items = {"decode, batch 1": lambda one: one.decode(1), "decode, batch 16": lambda one: one.decode(16),
             f"prefill of {PROMPT}": lambda one: one.prefill()}
    seen = {}
    for turn in range(options.rounds):
        for item, measure in items.items():
            for one in contenders:
                seen.setdefault((one, item), []).append(measure(one))
                print(f"round {turn + 1}, {item}, {one.name}: {seen[one, item][-1]:.1f}", file=sys.stderr, flush=True)
    print(f"tokens/s, median (least-most) of {options.rounds} rounds in turns, {os.cpu_count()} threads, "
          f"read bandwidth {Tandem.best_bandwidth:.1f} GB/s\n")
    print(f"{'':32}" + "".join(f"{item:>24}" for item in items) + f"{'of bandwidth, batch 1':>24}")
    for one in contenders:
        share = "-"
        if isinstance(one, Tandem):
            rate = statistics.median(seen[one, "decode, batch 1"])
            of_best = 100 * one.step_gb * rate / Tandem.best_bandwidth
            share = f"{100 * statistics.median(one.shares):.0f} % ({of_best:.0f} % of best)"
        print(f"{one.name:32}" + "".join(f"{cell(seen[one, item]):>24}" for item in items) + f"{share:>24}")


main()
