"""On a host with cards: `memory_limit_gib` is what each card gives, no more, and but for rounding no less.

    python3 tests/cards/must_show_memory.py CONFIG GIB [--model DIR] [--set KEY=VALUE ...]

Serves with random weights, by default of the 8B shape, lets 32 answers run, and compares what the cards hold with the
limit."""

import argparse
import sys

from cards import plan_lines, used_mib  # first: it makes the next one importable
from support import Server, in_threads, stream, sums

LEAST = 0.97  # of the limit: KV blocks are whole, and what libraries take is a bound


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("gib", type=float, metavar="GIB")
    parser.add_argument("--model", default="configs/models/DeepSeek-R1-Distill-Llama-8B")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    flags = ["--model", args.model, "--set", "load_format=dummy", "--set", "tokenizer=configs/models/tandem-r1-tiny",
             "--set", f"memory_limit_gib={args.gib}"]
    flags += [flag for change in args.set for flag in ("--set", change)]
    idle = used_mib()
    server = Server(*flags, config=args.config)
    bodies = [{"messages": [{"role": "user", "content": question}], "max_tokens": 64, "ignore_eos": True}
              for question, _ in sums(32)]
    failures = [result for result in in_threads([lambda b=body: stream(server, b) for body in bodies], 32)
                if isinstance(result, Exception)]
    taken = [now - then for now, then in zip(used_mib(), idle)]
    print("".join(f"  | {line}\n" for line in plan_lines(server)), end="")
    server.stop()
    limit = args.gib * 1024
    users = [mib for mib in taken if mib > 0.1 * limit]
    print(f"{args.config} {' '.join(flags)}: limit {limit:.0f} MiB, taken {taken}, failures {failures[:2]}")
    good = bool(users) and not failures and all(LEAST * limit <= mib <= limit for mib in users)
    print("1 passed, 0 failed" if good else "0 passed, 1 failed")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
