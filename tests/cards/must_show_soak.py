"""On a host with cards: a model under mixed load through HTTP for a time. Prompts and answers of all lengths, greedy and
sampled, several answers to a prompt, log-probabilities, and clients that go away in the middle.

    python3 tests/cards/must_show_soak.py CONFIG --model DIR [--seconds N] [--clients N] [--set KEY=VALUE ...]
                                          (120 seconds, 48 clients)

The weights are random, made on the card. Every answer that nobody cancelled must come whole and to its length, with its
usage right; afterwards nothing runs, no KV block and no journal entry is held, and the cards hold what they held after
the first answer."""

import argparse
import collections
import contextlib
import json
import random
import sys
import threading
import time

from cards import plan_lines, used_mib  # first: it makes the next one importable
from support import Server, expect, expect_equal, percentile, wait_for

SLACK_MIB = 64  # the driver's own memory
WORDS = ("one", "more", "word", "of", "a", "prompt", "that", "says", "little", "and", "is", "as", "long", "as", "drawn")


def draw(chance):
    """A request and after how many events its client goes away (None: never)."""
    words = chance.choice((3, 20, 100, 400))
    body = {
        "messages": [{"role": "user", "content": " ".join(chance.choices(WORDS, k=chance.randint(1, words)))}],
        "max_tokens": chance.choice((1, 16, 100, 400)),
        "ignore_eos": True,
        "temperature": chance.choice((0, 0.6, 1.0)),
        "top_p": chance.choice((0.5, 0.95, 1.0)),
        "top_k": chance.choice((0, 0, 50)),
        "repetition_penalty": chance.choice((1.0, 1.0, 1.1)),
        "seed": chance.randrange(1 << 31),
        "n": chance.choice((1, 1, 1, 2)),
        "logprobs": chance.random() < 0.25,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body, chance.randint(0, 60) if chance.random() < 0.25 else None


def ask(server, body, leave_after):
    """Returns (what became of it, tokens, times of its events)."""
    times, finishes, usage = [time.monotonic()], [], None
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            return f"status {reply.status}: {reply.read()[:200]}", 0, []
        for line in reply:
            if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
                continue
            if leave_after is not None and len(times) > leave_after:
                return "cancelled", 0, times
            times.append(time.monotonic())
            event = json.loads(line[6:])
            expect("error" not in event, str(event))
            finishes += [choice["finish_reason"] for choice in event["choices"] if choice["finish_reason"]]
            usage = event.get("usage") or usage
    expect_equal(finishes, ["length"] * body["n"], "the choices' ends")
    tokens = usage["completion_tokens"]
    expect_equal(tokens, body["n"] * body["max_tokens"], "tokens by the usage")
    return "whole", tokens, times


class Soak:
    """Clients, each of which asks again as soon as it was answered or has gone away."""

    def __init__(self, server, clients):
        self.server = server
        self.until = None
        self.ends = collections.Counter()
        self.tokens = 0
        self.first, self.gaps = [], []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(clients)]

    def work(self, number):
        chance = random.Random(number)
        while time.monotonic() < self.until:
            try:
                end, tokens, times = ask(self.server, *draw(chance))
            except Exception as error:  # told at the end, with the count
                end, tokens, times = f"{type(error).__name__}: {error}", 0, []
            with self.lock:
                self.ends[end] += 1
                self.tokens += tokens
                self.first += [times[1] - times[0]] if len(times) > 1 else []
                self.gaps += [b - a for a, b in zip(times[1:], times[2:])]

    def run(self, seconds):
        start = time.monotonic()
        self.until = start + seconds
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        return time.monotonic() - start


def is_idle(server):
    metrics = server.metrics()
    return all(metrics[name] == 0 for name in ("vllm:num_requests_running", "vllm:num_requests_waiting",
                                               "vllm:kv_cache_usage_perc", "tandem_journal_used_bytes"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    flags = ["--model", args.model, "--set", "load_format=dummy", "--set", "tokenizer=configs/models/tandem-r1-tiny"]
    flags += [flag for change in args.set for flag in ("--set", change)]
    start = time.monotonic()
    server = Server(*flags, config=args.config)
    print(f"{args.config} {' '.join(flags)}: ready in {time.monotonic() - start:.1f} s")
    print("".join(f"  | {line}\n" for line in plan_lines(server)), end="", flush=True)
    server.chat("3 + 4 = ?", max_tokens=16)
    before = used_mib()
    soak = Soak(server, args.clients)
    seconds = soak.run(args.seconds)
    wait_for(lambda: is_idle(server), "an idle server", 60)
    after = used_mib()
    counted = server.metrics()["vllm:generation_tokens_total"]
    restarted = "restart" in server.errors()
    server.stop()
    bad = {end: count for end, count in soak.ends.items() if end not in ("whole", "cancelled")}
    print(f"{seconds:.0f} s, {args.clients} clients: {soak.ends['whole']} answers whole, {soak.ends['cancelled']} cancelled, "
          f"{sum(bad.values())} otherwise {dict(list(bad.items())[:3])}; {soak.tokens} tokens of whole answers, "
          f"{counted / seconds:.0f} tokens/s of all")
    print(f"first token p50 {percentile(soak.first, 0.5):.3f} s, p99 {percentile(soak.first, 0.99):.3f} s; "
          f"between events p50 {1e3 * percentile(soak.gaps, 0.5):.1f} ms, p99 {1e3 * percentile(soak.gaps, 0.99):.1f} ms")
    print(f"MiB in use by card: {before} after the first answer, {after} at the end")
    good = (not bad and soak.ends["whole"] and soak.ends["cancelled"] and not restarted and
            all(now - then <= SLACK_MIB for now, then in zip(after, before)))
    print("1 passed, 0 failed" if good else "0 passed, 1 failed")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
