"""On a host with cards: kill -9 of a worker under load. Every stream goes on to its right answer; the pause is printed,
and what it holds; and the memory in use on each card is, once the group is back, what it was before.

    python3 tests/cards/must_show_kills.py [CONFIG] [--kills N] [--streams N]     (configs/h100-x2.yaml, 5, 32)
    python3 tests/cards/must_show_kills.py [CONFIG] --model DIR --tokens N [--set KEY=VALUE ...]

The embedded model answers sums, in less time than a group takes to come back. For the pause of streams that a kill finds
in their middle give a large model: its answers run to N tokens each, and every token must be there, once.
"""

import argparse
import random
import sys
import threading
import time

from cards import used_mib  # first: it makes the next one importable
from support import Server, answer_of, expect, kill, percentile, stream, sums, wait_for

SLACK_MIB = 64  # what two starts of the same group may differ by: the driver's own memory


def check_sum(result, right):
    expect(answer_of(result["text"]) == right, f"{result['text']!r}, not {right}")


def check_length(result, tokens):
    expect(len(result["tokens"]) == tokens, f"{len(result['tokens'])} tokens, not {tokens}")
    expect(result["finish"] == "length", f"it finished with {result['finish']}")


class Load:
    """Threads that ask sums, over and over, until stopped. With `tokens` the answers have that length, right or not."""

    def __init__(self, server, pairs, tokens=None):
        self.server = server
        self.length = tokens
        self.stopping = False
        self.answers = 0
        self.failures = []
        self.times = []
        self.tokens = 0
        self.threads = [threading.Thread(target=self.work, args=(pairs, i), daemon=True)
                        for i in range(len(pairs))]
        for thread in self.threads:
            thread.start()

    def note(self, _):
        self.tokens += 1

    def work(self, pairs, number):
        turn = number
        while not self.stopping:
            question, right = pairs[turn % len(pairs)]
            turn += 1
            body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
            if self.length:
                body.update(max_tokens=self.length, ignore_eos=True)
            try:
                result = stream(self.server, body, self.note)
                expect(result["error"] is None, str(result["error"]))
                if self.length:
                    check_length(result, self.length)
                else:
                    check_sum(result, right)
            except Exception as error:
                self.failures.append(f"{question}: {error}")
                return
            self.answers += 1
            self.times.append(result["times"])

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()


def pauses(times, moments):
    """For each kill and each stream that was under way: seconds from the kill to the stream's next event."""
    return [next(t for t in stream_times if t > moment) - moment
            for stream_times in times for moment in moments if stream_times[0] < moment < stream_times[-1]]


def kill_one(server, load, chance):
    """Kills a worker while tokens flow and waits until they flow again; returns when it was."""
    before = load.tokens
    wait_for(lambda: load.tokens > before + 500 or load.failures, "tokens", 120)
    victim = chance.choice(sorted(server.workers().items()))
    moment = time.monotonic()
    kill(victim[1])
    wait_for(lambda: victim[1] not in server.workers().values(), "its end", 60)
    before = load.tokens
    wait_for(lambda: load.tokens > before or load.failures, "tokens after the kill", 120)
    return moment


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/h100-x2.yaml")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--model", metavar="DIR")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if (args.model is None) != (args.tokens is None):
        parser.error("--model and --tokens go together")
    flags = ["--model", args.model] if args.model else []
    flags += [flag for change in args.set for flag in ("--set", change)]
    idle = used_mib()
    server = Server(*flags, config=args.config)
    load = Load(server, sums(args.streams), args.tokens)
    wait_for(lambda: load.tokens > 500 or load.failures, "tokens", 120)
    ready = used_mib()
    chance = random.Random(1)
    moments = [kill_one(server, load, chance) for _ in range(args.kills) if not load.failures]
    back = used_mib()
    load.stop()
    found = pauses(load.times, moments)
    server.stop()
    wait_for(lambda: all(now - then < SLACK_MIB for now, then in zip(used_mib(), idle)), "the cards' memory", 20)
    print(f"{len(moments)} kills, {load.answers} right answers, {len(load.failures)} failures {load.failures[:3]}")
    if found:
        print(f"pause of a stream: p50 {percentile(found, 0.5):.2f} s, most {max(found):.2f} s, of {len(found)}")
    print("".join(f"  | {line}\n" for line in server.errors().splitlines() if "replica" in line), end="")
    print(f"MiB in use by card: idle {idle}, serving {ready}, after the kills {back}, at the end {used_mib()}")
    good = (len(moments) == args.kills and not load.failures and found and
            all(now - then <= SLACK_MIB for now, then in zip(back, ready)))
    print("1 passed, 0 failed" if good else "0 passed, 1 failed")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
