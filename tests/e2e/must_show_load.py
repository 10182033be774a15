"""Long run: rounds of 1,000 concurrent requests, a third of them cancelled in one way or another; afterwards KV blocks,
journal, descriptors and memory are back to where they were."""

import asyncio
import collections
import json
import os
import random

from support import Server, answer_of, command_line, expect, expect_equal, main, sums, test, wait_for

REQUESTS = 1000
ROUNDS = 4  # the first one warms up
SEED = 7


def encode(body):
    data = json.dumps(body).encode()
    return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(data)).encode() + b"\r\n\r\n" + data)


async def read_whole(reader):
    """Status and body (chunked or not) of a reply that ends with its connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split()[1])
    body = await reader.read()
    if b"transfer-encoding: chunked" in head.lower():
        parts, rest = [], body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            if int(size, 16) == 0:
                return status, b"".join(parts), True
            parts.append(rest[:int(size, 16)])
            rest = rest[int(size, 16) + 2:]
        return status, b"".join(parts), False
    return status, body, True


def check_stream(body, whole, answer):
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if not whole or events[-1] != b"[DONE]":
        return "broken off"
    text = "".join((choice["delta"].get("content") or "") for event in events[:-1]
                   for choice in json.loads(event)["choices"])
    return "right" if answer_of(text) == answer else "wrong"


async def one(server, question, answer, kind, chance):
    """One request of a kind; returns what became of it."""
    streamed = kind != "whole" and kind != "cancel whole"
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "stream": streamed}
    if kind.startswith("cancel"):
        body.update(ignore_eos=True, max_tokens=1000)
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=1 << 20)
    try:
        writer.write(encode(body))
        await writer.drain()
        if kind == "cancel at once":
            return "cancelled"
        if kind == "cancel whole":
            await asyncio.sleep(chance.uniform(0, 2))
            return "cancelled"
        if kind == "cancel stream":
            left = chance.randrange(200, 4000)
            while left > 0:
                got = await reader.read(left)
                if not got:
                    return "ended before it was cancelled"
                left -= len(got)
            return "cancelled"
        status, data, whole = await read_whole(reader)
        if status != 200:
            return f"status {status}"
        if streamed:
            return check_stream(data, whole, answer)
        text = json.loads(data)["choices"][0]["message"]["content"]
        return "right" if answer_of(text) == answer else "wrong"
    finally:
        writer.transport.abort() if kind.startswith("cancel") else writer.close()


async def one_round(server, pairs, chance):
    kinds = ["stream", "stream", "whole", "cancel stream", "cancel whole", "cancel at once"]
    weights = [3, 3, 2, 2, 1, 1]
    jobs = []
    for _ in range(REQUESTS):
        question, answer = chance.choice(pairs)
        jobs.append(one(server, question, answer, chance.choices(kinds, weights)[0], chance))
    return collections.Counter(await asyncio.gather(*jobs))


def state_of(server):
    """What must come back: descriptors of each process, KV blocks, journal bytes, memory in MiB."""
    pids = [server.pid, server.frontend(), *server.workers().values()]
    memory = {}
    for pid in pids:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        name = " ".join(command_line(pid)[1:6]) if pid != server.pid else "serve"
        memory[name] = int(fields["RssAnon"].split()[0]) / 1024
    metrics = server.metrics()
    return {
        "descriptors": {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids},
        "running": metrics["vllm:num_requests_running"],
        "waiting": metrics["vllm:num_requests_waiting"],
        "kv": metrics["vllm:kv_cache_usage_perc"],
        "journal": metrics["tandem_journal_used_bytes"],
        "calls": metrics["tandem_calls"],
    }, memory


def wait_until_back(server, wanted):
    last = []

    def is_back():
        last[:] = [state_of(server)]
        return last[0][0] == wanted

    try:
        wait_for(is_back, "everything to be given back", 60)
    except AssertionError as error:
        raise AssertionError(f"left over: {last[0][0]}, at the start {wanted}") from error
    return last[0][1]


@test(seconds=3600)
def a_thousand_at_once_leave_nothing_behind():
    chance = random.Random(SEED)
    server = Server("--set", "engine.queue=1100")
    pairs = sums(500)
    server.chat("3 + 4 = ?")
    # The connection that asks is always one of them.
    start, _ = state_of(server)
    expect_equal((start["running"], start["waiting"], start["kv"], start["journal"]), (0, 0, 0, 0), "idle state")
    memories = []
    for number in range(ROUNDS):
        outcomes = asyncio.run(one_round(server, pairs, chance))
        print(f"     round {number + 1}: {dict(sorted(outcomes.items()))}", flush=True)
        answered = outcomes["right"] + outcomes["wrong"]
        expect(outcomes["right"] >= 0.97 * answered, f"{outcomes['right']} of {answered} right")
        expect_equal(set(outcomes) - {"right", "wrong", "cancelled"}, set(), "other ends")
        memories.append(wait_until_back(server, start))
    for name, after_first in memories[0].items():
        grown = memories[-1][name] - after_first
        print(f"     {name}: {after_first:.1f} MiB after the first round, {grown:+.1f} MiB after {ROUNDS - 1} more")
        expect(grown <= 4 + 0.05 * after_first, f"{name} grew by {grown:.1f} MiB")
    expect("restart" not in server.errors(), "a worker died")
    expect_equal(answer_of(server.chat("3 + 4 = ?")["message"]["content"]), "7", "the answer")
    server.stop()


if __name__ == "__main__":
    main()
