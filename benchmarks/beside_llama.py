"""Tandem and llama.cpp on the same model, machine and thread count, in turns: decode at batch 1 and 16, prefill of 512.

    beside_llama.py BENCHMARKS DIR LLAMA_BIN_FOLDER GGUF... [--rounds N]

BENCHMARKS is the folder of bench_decode and bench_prefill, DIR the Hugging Face directory; LLAMA_BIN_FOLDER holds llama-bench and
llama-batched-bench, each GGUF is the same model in one number format. Prints the median of every figure, and for ours
the share of the read bandwidth that was measured in the same runs. Standard library only."""
import argparse
import json
import os
import re
import statistics
import subprocess


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rows_of(program, model, *flags):
    """The rows of one of our benchmarks, by what they are about."""
    rows = {}
    for line in run(program, "--model", model, "--backend", "cpu", "--tp", "1,2", "--json", *flags).splitlines():
        row = json.loads(line)
        rows.setdefault(row["row"], []).append(row)
    return rows


def ours(folder, model):
    figures = {}
    decode = rows_of(f"{folder}/bench_decode", model, "--batch", "1,16", "--context", "8", "--steps", "128")
    prefill = rows_of(f"{folder}/bench_prefill", model, "--prompt", "512", "--chunk", "512", "--steps", "3")
    for row in decode["step"]:
        figures[f"tandem TP {row['tp']}", f"decode, batch {row['batch']}"] = row["tokens_per_s"]
        if row["batch"] == 1:
            figures[f"tandem TP {row['tp']}", "share of read bandwidth"] = row["of_floor_%"] / 100
    for row in prefill["prompt"]:
        figures[f"tandem TP {row['tp']}", "prefill 512"] = row["tokens_per_s"]
    return figures


def theirs(folder, gguf, threads):
    name = f"llama.cpp {os.path.basename(gguf)}"
    rows = json.loads(run(f"{folder}/llama-bench", "-m", gguf, "-t", threads, "-p", "512", "-n", "128", "-r", "3",
                          "-o", "json"))
    figures = {}
    for row in rows:
        shape = "prefill 512" if row["n_prompt"] > 0 else "decode, batch 1"
        figures[name, shape] = row["avg_ts"]
    table = run(f"{folder}/llama-batched-bench", "-m", gguf, "-t", threads, "-c", "4096", "-npp", "8", "-ntg", "128",
                "-npl", "16")
    row = [cell.strip() for cell in re.findall(r"^\|\s*8\s*\|.*$", table, re.M)[0].strip("|").split("|")]
    figures[name, "decode, batch 16"] = float(row[7])  # PP TG B N_KV T_PP S_PP T_TG S_TG ...
    return figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("benchmarks")
    parser.add_argument("model")
    parser.add_argument("llama")
    parser.add_argument("gguf", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    threads = str(os.cpu_count())
    figures = {}
    for _ in range(options.rounds):
        parts = [ours(options.benchmarks, options.model)]
        parts += [theirs(options.llama, gguf, threads) for gguf in options.gguf]
        for part in parts:
            for key, value in part.items():
                figures.setdefault(key, []).append(value)
    shapes = ["decode, batch 1", "share of read bandwidth", "decode, batch 16", "prefill 512"]
    print(f"medians of {options.rounds} rounds in turns, {threads} threads\n")
    print(f"{'tokens/s':34}" + "".join(f"{shape:>26}" for shape in shapes))
    for name in dict.fromkeys(name for name, _ in figures):
        cells = []
        for shape in shapes:
            values = figures.get((name, shape))
            cells.append("-" if not values else f"{statistics.median(values):.2f}" if "share" in shape
                         else f"{statistics.median(values):.1f}")
        print(f"{name:34}" + "".join(f"{cell:>26}" for cell in cells))


main()
