"""On a host with cards: the accuracy of the embedded model on 2,000 held-out sums, greedy, through `tandem serve` at one
and two cards, one request at a time and 128 at once, beside the processor's. Within half a point of it each.

    python3 tests/cards/must_show_sums.py [CONFIG ...] [--set KEY=VALUE ...] [--alone N] [--crowd N] [--cpu RIGHT]

CONFIG: configs/h100-x1.yaml and configs/h100-x2.yaml by default. --alone and --crowd: how many of the sums are asked in
the one and the other way (2,000). --cpu: how many of 2,000 the processor had right, to save that run. TANDEM_PLUGIN names
a plug-in to use instead of those beside the program."""

import argparse
import sys
import time

from cards import plan_lines, used_mib  # first: it makes the next one importable
from support import Server, answer_of, in_threads, sums

POINTS = 0.5


def ask(server, pairs, streams):
    """(right, tokens per second)"""
    before = server.metrics()["vllm:generation_tokens_total"]
    start = time.monotonic()
    choices = in_threads([lambda q=question: server.chat(q) for question, _ in pairs], streams)
    seconds = time.monotonic() - start
    for choice in choices:
        if isinstance(choice, Exception):
            raise choice
    right = sum(answer_of(choice["message"]["content"]) == answer for choice, (_, answer) in zip(choices, pairs))
    return right, (server.metrics()["vllm:generation_tokens_total"] - before) / seconds


def run_config(config, flags, args, least):
    """Prints a line for each way of asking; False when one is too bad."""
    before = used_mib()
    server = Server(*flags, config=config)
    taken = [now - then for now, then in zip(used_mib(), before)]
    print(f"{config} {' '.join(flags)}: MiB taken by card {taken}")
    print("".join(f"  | {line}\n" for line in plan_lines(server)), end="", flush=True)
    good = True
    for streams, count in ((1, args.alone), (128, args.crowd)):
        if count == 0:
            continue
        pairs = sums(count)
        right, rate = ask(server, pairs, streams)
        good = good and right / len(pairs) >= least
        print(f"  {streams:3} at once: {right} of {len(pairs)} right ({right / len(pairs):.2%}), {rate:.0f} tokens/s",
              flush=True)
    server.stop()
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["configs/h100-x1.yaml", "configs/h100-x2.yaml"], metavar="CONFIG")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--alone", type=int, default=2000)
    parser.add_argument("--crowd", type=int, default=2000)
    parser.add_argument("--cpu", type=int)
    args = parser.parse_args()
    right = args.cpu
    if right is None:
        server = Server(config="configs/cpu-x1.yaml")
        right, _ = ask(server, sums(2000), 64)
        server.stop()
    least = right / 2000 - POINTS / 100
    print(f"processor: {right} of 2000 right ({right / 2000:.2%}); at least {least:.2%} is wanted of the cards")
    flags = [flag for change in args.set for flag in ("--set", change)]
    results = [run_config(config, flags, args, least) for config in args.configs]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
