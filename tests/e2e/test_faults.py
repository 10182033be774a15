"""Processes that die or stand still while streams run: every stream goes on, token for token, or says that it failed."""

import json
import os
import signal
import threading

from support import (Server, StreamBroken, answer_of, expect, expect_equal, in_threads, kill, main, stream, sums, test,
                     wait_for)


def bodies(count):
    """Requests of every kind: greedy ones, seeded ones, and several with penalties."""
    made = []
    for index, (question, _) in enumerate(sums(count)):
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        if index % 3 == 1:
            body.update(temperature=1.2, seed=index, top_p=0.95)
        if index % 3 == 2:
            body.update(temperature=0.8, seed=index, repetition_penalty=1.05, top_k=40, max_tokens=120)
        made.append(body)
    return made


def same(results, undisturbed, what):
    """Every stream is whole and equal to the undisturbed one, token by token."""
    for index, (result, wanted) in enumerate(zip(results, undisturbed)):
        if isinstance(result, Exception):
            raise AssertionError(f"{what}: stream {index}: {type(result).__name__}: {result}") from result
        expect(result["error"] is None, f"{what}: stream {index}: {result['error']}")
        for part in ("tokens", "text", "reasoning", "finish"):
            expect_equal(result[part], wanted[part], f"{what}: {part} of stream {index}")


def run_disturbed(server, requests, disturb, after_tokens):
    """Streams all requests at once and calls disturb() when that many tokens have come in all."""
    lock = threading.Lock()
    seen = {"tokens": 0, "disturbed": False}

    def note(_result):
        with lock:
            seen["tokens"] += 1
            now = seen["tokens"] >= after_tokens and not seen["disturbed"]
            seen["disturbed"] = seen["disturbed"] or now
        if now:
            disturb()

    results = in_threads([lambda b=body: stream(server, b, note) for body in requests], len(requests))
    expect(seen["disturbed"], "the streams ended before anything was disturbed")
    return results


@test(seconds=300)
def a_killed_worker_is_not_a_killed_stream():
    server = Server()
    requests = bodies(16)
    undisturbed = in_threads([lambda b=body: stream(server, b) for body in requests], 16)
    same(undisturbed, undisturbed, "undisturbed")
    for number, (rank, after) in enumerate(((0, 60), (1, 300), (0, 700)), 1):
        victim = server.workers()[0, rank]
        results = run_disturbed(server, requests, lambda: kill(victim), after)
        same(results, undisturbed, f"rank {rank} killed after {after} tokens")
        # The answers may have been complete when it was killed, and on their way: they do not wait for the next group.
        wait_for(lambda n=number: f"(restart {n})" in server.errors(), "the next group")
        expect(victim not in server.workers().values(), "the dead worker is still there")
    server.stop()


@test(seconds=300)
def a_whole_group_killed_at_once_comes_back():
    server = Server("--set", "engine.prefix_cache=false")
    requests = bodies(8)
    undisturbed = in_threads([lambda b=body: stream(server, b) for body in requests], 8)

    def kill_all():
        for pid in server.workers().values():
            kill(pid)

    same(run_disturbed(server, requests, kill_all, 100), undisturbed, "all killed")
    server.stop()


@test(seconds=300)
def a_worker_killed_while_the_group_starts_again_is_no_failure():
    server = Server()
    requests = bodies(8)
    undisturbed = in_threads([lambda b=body: stream(server, b) for body in requests], 8)

    def kill_twice():
        first = server.workers()
        kill(first[0, 1])
        again = wait_for(lambda: [pid for pid in server.workers().values() if pid not in first.values()],
                         "new workers")
        kill(again[0])

    same(run_disturbed(server, requests, kill_twice, 100), undisturbed, "killed twice")
    server.stop()


@test(seconds=300)
def a_replica_lives_on_when_the_other_dies():
    server = Server("--set", "replicas=2", config="configs/cpu-x1.yaml")
    requests = bodies(12)
    undisturbed = in_threads([lambda b=body: stream(server, b) for body in requests], 12)
    other = server.workers()[1, 0]
    results = run_disturbed(server, requests, lambda: kill(server.workers()[0, 0]), 100)
    same(results, undisturbed, "one of two replicas killed")
    expect_equal(server.workers()[1, 0], other, "the other replica's worker")
    server.stop()


@test(seconds=300)
def a_stopped_worker_is_found_and_replaced():
    server = Server()
    requests = bodies(4)
    undisturbed = in_threads([lambda b=body: stream(server, b) for body in requests], 4)
    victim = server.workers()[0, 1]
    results = run_disturbed(server, requests, lambda: kill(victim, signal.SIGSTOP), 50)
    same(results, undisturbed, "stopped")
    wait_for(lambda: "stalls" in server.errors(), "the stopped worker to be found")
    server.stop()


@test(seconds=300)
def an_idle_worker_that_stands_still_is_replaced():
    server = Server()
    victim = server.workers()[0, 0]
    kill(victim, signal.SIGSTOP)
    wait_for(lambda: "up again" in server.errors(), "the group to come back", 40)
    expect_equal(answer_of(server.chat("3 + 4 = ?")["message"]["content"]), "7", "the answer")
    server.stop()


@test(seconds=300)
def the_server_comes_back_when_its_front_end_dies():
    server = Server()
    workers = server.workers()
    port = server.port
    endless = {"messages": [{"role": "user", "content": "go on"}], "ignore_eos": True, "max_tokens": 3900}
    for _ in range(3):
        front = server.frontend()
        results = run_disturbed(server, [endless, *bodies(8)], lambda pid=front: kill(pid), 100)
        # HTTP clients cannot be handed over; what must not happen is an answer that looks whole and is not.
        expect(isinstance(results[0], StreamBroken), "the endless stream did not notice the front-end's end")
        expect(all(isinstance(result, (StreamBroken, dict)) for result in results), f"{results}")
        wait_for(lambda pid=front: server.frontend() not in (None, pid), "the next front-end")
        expect_equal(answer_of(server.chat("3 + 4 = ?")["message"]["content"]), "7", "the answer")
    expect_equal(server.workers(), workers, "workers, which keep their weights")
    expect_equal(server.port, port, "the port")
    server.stop()


@test(seconds=300)
def front_end_and_worker_may_die_together():
    server = Server()

    def kill_both():
        kill(server.frontend())
        kill(server.workers()[0, 1])

    run_disturbed(server, bodies(8), kill_both, 100)

    def answers():
        try:
            return answer_of(server.chat("3 + 4 = ?")["message"]["content"]) == "7"
        except (OSError, AssertionError):
            return False

    wait_for(answers, "an answer", 30)
    server.stop()


@test(seconds=300)
def a_group_that_dies_again_and_again_is_given_up_with_its_cause():
    server = Server()
    for death in range(5):
        workers = wait_for(lambda: server.workers() if len(server.workers()) == 2 else None, "workers", 60)
        kill(workers[0, 0])
        wait_for(lambda: workers[0, 0] not in server.workers().values(), "its end")
        if death < 4:
            wait_for(lambda: len(server.workers()) == 2, "the next start", 60)
    wait_for(lambda: "given up" in server.errors(), "giving up")
    expect_equal(server.workers(), {}, "workers left")
    expect_equal(server.request("GET", "/health")[0], 200, "/health: the process lives")
    expect_equal(server.request("GET", "/ready")[0], 503, "/ready: it would not answer")
    body = {"messages": [{"role": "user", "content": "3 + 4 = ?"}]}
    status, headers, text = server.request("POST", "/v1/chat/completions", body)
    expect_equal(status, 503, f"status ({text})")
    expect("killed by signal 9" in json.loads(text)["error"]["message"], text)
    server.note_children()
    server.send_signal(signal.SIGTERM)
    expect_equal(server.wait(), 1, "exit code after giving up")
    expect_equal(server.left_running(), [], "processes left")


@test(seconds=300)
def workers_die_while_it_drains_and_the_answers_end_all_the_same():
    server = Server("--set", "drain_timeout=60")
    requests = bodies(6)
    undisturbed = in_threads([lambda b=body: stream(server, b) for body in requests], 6)

    def drain_and_kill():
        server.note_children()
        worker = server.workers()[0, 1]
        os.kill(worker, signal.SIGSTOP)  # the answers cannot end before it is killed
        server.send_signal(signal.SIGTERM)
        kill(worker)

    same(run_disturbed(server, requests, drain_and_kill, 100), undisturbed, "killed in the drain")
    expect_equal(server.wait(), 0, "exit code")
    expect_equal(server.left_running(), [], "processes left")


if __name__ == "__main__":
    main()
