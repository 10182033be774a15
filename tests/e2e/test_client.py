"""The client library against a real server, through its Python binding: every kind of request with the answers of HTTP,
refusals, cancels, and answers that are whole across cut connections and killed front-ends."""

import ast
import json
import os
import subprocess
import sys
import tempfile
import threading

from support import PROGRAM, ROOT, Server, expect, expect_equal, kill, main, sums, test, wait_for
from tsp_proxy import Proxy

LIBRARIES = os.path.dirname(os.path.abspath(PROGRAM))
if LIBRARIES not in os.environ.get("LD_LIBRARY_PATH", "").split(":"):  # the loader reads it when a program starts
    os.environ["LD_LIBRARY_PATH"] = f"{LIBRARIES}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    os.execv(sys.executable, [sys.executable, *sys.argv])
sys.path.insert(0, os.path.join(ROOT, "runtime", "client", "python"))
from tandem_client import Client, Event, TandemError  # noqa: E402

CHAT = [{"role": "user", "content": "What is 123 + 456?"}]


def start(*arguments):
    server = Server(*arguments, config="configs/cpu-x1.yaml")
    server.tcp = f"{server.host}:{server.tcp_port}"
    return server


def parts(events):
    """What two equal answers have in common, by choice, and the usage."""
    found = {}
    usage = None
    for event in events:
        choice = found.setdefault(event.choice, {"ids": [], "text": "", "reasoning": "", "logprobs": [], "finish": None})
        expect_equal(event.offset, len(choice["ids"]), "offset")
        choice["ids"] += event.ids
        choice["text"] += event.text
        choice["reasoning"] += event.reasoning
        choice["logprobs"] += event.logprobs
        choice["finish"] = event.finish_reason or choice["finish"]
        usage = event.usage or usage
    expect(usage is not None, "no usage")
    return found, tuple(usage)


def expect_refused(code, function):
    try:
        function()
    except TandemError as error:
        expect_equal(error.code, code, f"code ({error})")
        return error
    raise AssertionError(f"not refused with {code}")


def expect_refused_any(codes, function):
    try:
        function()
    except TandemError as error:
        return error.code in codes
    raise AssertionError(f"not refused with one of {codes}")


def kinds():
    """Requests of every kind, by name."""
    return {
        "greedy": {"messages": CHAT, "temperature": 0},
        "seeded": {"messages": CHAT, "temperature": 1.1, "seed": 5, "top_p": 0.95, "n": 2, "max_tokens": 60},
        "logprobs": {"prompt": "12 + 30", "temperature": 0, "max_tokens": 12, "logprobs": 3},
        "long": {"ids": [15, 16, 17], "temperature": 0.8, "seed": 2, "max_tokens": 250, "ignore_eos": True},
        "stopped": {"messages": CHAT, "temperature": 0, "stop": ["=", "\n"]},
    }


@test(seconds=180)
def answers_are_those_of_http():
    server = start()
    with Client([server.tcp]) as client:
        choice = server.chat(CHAT[0]["content"])
        (got, _) = parts(client.generate(messages=CHAT, temperature=0))
        expect_equal(got[0]["text"], choice["message"]["content"], "text")
        expect_equal(got[0]["reasoning"], choice["message"]["reasoning_content"], "reasoning")
        expect_equal(got[0]["finish"], choice["finish_reason"], "finish")
        fields = {"temperature": 1.5, "seed": 11, "max_tokens": 40, "n": 3}
        _, _, text = server.request("POST", "/v1/chat/completions", {"messages": CHAT, **fields})
        reply = json.loads(text)
        got, usage = parts(client.generate(messages=CHAT, **fields))
        expect_equal([got[i]["text"] for i in range(3)], [one["message"]["content"] for one in reply["choices"]], "texts")
        expect_equal(usage[:2], (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]), "usage")
    server.stop()


@test(seconds=180)
def prompts_ids_and_logprobs():
    server = start()
    body = {"prompt": "12 + 30", "temperature": 0, "max_tokens": 12, "logprobs": 3}
    _, _, text = server.request("POST", "/v1/completions", body)
    reply = json.loads(text)["choices"][0]
    with Client([server.tcp]) as client:
        got = parts(client.generate(**body))[0][0]
        expect_equal(got["text"], reply["text"], "text")
        chosen = [round(entry.logprob, 4) for entry in got["logprobs"]]
        shown = [round(value, 4) for value in reply["logprobs"]["token_logprobs"]]  # without the id that ended it
        expect_equal(chosen, shown + chosen[len(shown):][:1], "logprobs")
        expect_equal([entry.id for entry in got["logprobs"]], got["ids"], "ids of the entries")
        expect(all(len(entry.alternatives) == 3 for entry in got["logprobs"]), "alternatives")
        _, _, text = server.request("POST", "/v1/completions", {"prompt": [15, 16, 17], "temperature": 0, "max_tokens": 9})
        got = parts(client.generate(ids=[15, 16, 17], temperature=0, max_tokens=9))[0][0]
        expect_equal(got["text"], json.loads(text)["choices"][0]["text"], "text of ids")
        biased = parts(client.generate(prompt="12", temperature=0, max_tokens=4, logit_bias={20: 100.0}))[0][0]
        expect_equal(biased["ids"], [20, 20, 20, 20], "biased ids")
    server.stop()


@test(seconds=180)
def refusals_carry_code_and_field():
    with tempfile.NamedTemporaryFile("w") as keys:
        keys.write("right\n")
        keys.flush()
        server = start("--set", f"api_key_file={keys.name}")
        with Client([server.tcp], key="wrong") as client:
            expect_refused(4001, lambda: list(client.generate(prompt="1")))
        with Client([server.tcp]) as client:
            expect_refused(4001, lambda: list(client.generate(prompt="1")))
        with Client([server.tcp], key="right") as client:
            error = expect_refused(2001, lambda: list(client.generate(prompt="1", temperature=-1.0)))
            expect_equal(error.param, "temperature", "param")
            expect_refused(2002, lambda: list(client.generate(prompt="1", model="another")))
            expect_refused(2004, lambda: list(client.generate(ids=[15] * 4000, max_tokens=4000)))
            expect_refused(-8, lambda: client.generate(prompt="1", temprature=1.0))
            expect_refused(-8, lambda: client.generate(prompt="1", max_tokens=-1))
            for ids in [-1], [1 << 32]:  # not the id that their lowest 32 bits are
                expect_refused(-8, lambda: client.generate(ids=ids))
                expect_refused(-8, lambda: client.generate(prompt="1", stop_token_ids=ids))
                expect_refused(-8, lambda: client.generate(prompt="1", logit_bias={ids[0]: 1.0}))
            expect_refused(-8, lambda: client.resume(bytes(16), [-1]))
            expect_equal(len(parts(client.generate(prompt="1", max_tokens=3, ignore_eos=True))[0][0]["ids"]), 3, "ids")
        server.stop()
    expect_refused(-8, lambda: Client(["localhost"]))
    with Client(["127.0.0.1:1"], timeout=0.3) as client:
        expect_refused(-3, lambda: list(client.generate(prompt="1")))
        expect_refused(-4, lambda: list(client.generate(prompt="1", timeout_ms=60000)))


@test(seconds=180)
def cancels_end_what_runs():
    server = start()
    with Client([server.tcp]) as client:
        stream = client.generate(prompt="12", max_tokens=3900, ignore_eos=True)
        next(stream)
        stream.cancel()
        expect_equal(list(stream)[-1].finish_reason, "cancelled", "finish")
        waiting = client.generate(prompt="12", max_tokens=3900, ignore_eos=True)
        timer = threading.Timer(0.2, waiting.cancel)
        timer.start()
        expect_equal(list(waiting)[-1].finish_reason, "cancelled", "finish by another thread")
        timer.join()
        with client.generate(prompt="12", max_tokens=3900, ignore_eos=True) as dropped:
            next(dropped)
        late = expect_refused(-3, lambda: list(client.generate(prompt="12", max_tokens=3900, ignore_eos=True,
                                                               timeout_ms=100)))
        expect("timeout_ms" in str(late), str(late))
        client.generate(prompt="12", max_tokens=1).close()
        parts(client.generate(prompt="12", max_tokens=1))  # carries the cancels before it
        wait_for(lambda: server.metrics()["tandem_tcp_requests"] == 0, "all to be forgotten")
    server.stop()


@test(seconds=300)
def cut_connections_lose_nothing():
    server = start()
    with Client([server.tcp]) as client:
        wanted = {name: parts(client.generate(**fields)) for name, fields in kinds().items()}
        expect_equal(client.reconnects, 0, "reconnects")
    cuts = 0
    for seed in range(6):
        proxy = Proxy((server.host, server.tcp_port), 1200, seed)
        with Client([f"127.0.0.1:{proxy.address[1]}"]) as client:
            streams = {name: client.generate(**fields) for name, fields in kinds().items()}
            for name, stream in streams.items():
                expect_equal(parts(stream), wanted[name], f"{name} across cuts")
            cuts += client.reconnects
        proxy.stop()
    expect(cuts >= 20, f"only {cuts} cuts")
    server.stop()


@test(seconds=300)
def a_killed_frontend_is_not_a_killed_answer():
    server = start()
    fields = {"prompt": "12 + 30", "temperature": 0.9, "seed": 4, "max_tokens": 1500, "ignore_eos": True}
    with Client([server.tcp]) as client:
        wanted = parts(client.generate(**fields))
        stream = client.generate(**fields)
        events = [next(stream) for _ in range(3)]
        kill(server.frontend())
        events += list(stream)
        expect_equal(parts(events), wanted, "the answer")
        expect(client.reconnects >= 1, "the connection was not lost")
    server.stop()


@test(seconds=180)
def another_process_goes_on_with_a_stream():
    server = start()
    fields = {"prompt": "12 + 30", "temperature": 0.9, "seed": 4, "max_tokens": 1500, "ignore_eos": True, "n": 2}
    script = ("import os, sys; from tandem_client import Client; client = Client([sys.argv[1]]);"
              "stream = client.generate(**eval(sys.argv[2])); events = [next(stream) for _ in range(4)];"
              "print((stream.id, [tuple(event) for event in events]), flush=True); os.kill(os.getpid(), 9)")
    environment = {**os.environ, "PYTHONPATH": sys.path[0]}
    done = subprocess.run([sys.executable, "-c", script, server.tcp, repr(fields)], env=environment,
                          capture_output=True, text=True, timeout=60)
    expect_equal(done.returncode, -9, f"the first process ({done.stderr})")
    id, first = ast.literal_eval(done.stdout)
    events = [Event(*event) for event in first]
    offsets = [sum(len(event.ids) for event in events if event.choice == choice) for choice in range(2)]
    with Client([server.tcp]) as client:
        wanted = parts(client.generate(**fields))
        stream = client.resume(id, offsets)
        expect_equal(stream.id, id, "id")
        events += [next(stream) for _ in range(4)]
        offsets = [sum(len(event.ids) for event in events if event.choice == choice) for choice in range(2)]
        stream.leave()
        expect_refused(4002, lambda: list(client.resume(os.urandom(16))))
        expect_refused(2001, lambda: list(client.resume(id, [1 << 40])))
        expect_refused(-8, lambda: client.resume(b"short"))
        other = Client([server.tcp])
        events += list(other.resume(id, offsets))
        expect_equal(parts(events), wanted, "the answer")
        expect_equal(list(stream), [], "events of a stream that was left")
        other.close()
        wait_for(lambda: server.metrics()["tandem_tcp_requests"] == 0, "all to be forgotten")
        expect_refused(4003, lambda: list(client.resume(id)))
    server.stop()


@test(seconds=180)
def status_is_told_and_disconnects_may_cancel():
    server = start("--set", "engine.queue=7")
    with Client([server.tcp], timeout=30) as client:
        status = client.status()
        expect_equal(status, (server.tcp, 0, 0, 7, 0.0, 1, 1, False, 0, 4096, "tandem-r1-tiny"), "status when idle")
        stream = client.generate(prompt=["12", [15, 16]], max_tokens=3900, ignore_eos=True, on_disconnect="cancel",
                                 deadline_ms=600000)
        next(stream)
        wait_for(lambda: client.status().running == 2, "both sequences to run")
        status = client.status()
        expect(status.requests == 1 and 0 < status.kv_used <= 1, str(status))
        stream.leave()
        expect_refused(-8, lambda: client.generate(prompt="1", on_disconnect="abort"))
    wait_for(lambda: server.metrics()["tandem_tcp_requests"] == 0, "the lost connection's request")
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0, "its sequences' end")
    server.stop()
    with Client([server.tcp], timeout=0.3) as client:
        expect(expect_refused_any((-3, -4), client.status), "no code")


@test(seconds=180)
def acks_that_a_cut_swallows_are_sent_again():
    server = start()
    proxy = Proxy((server.host, server.tcp_port), 600, 3)
    with Client([f"127.0.0.1:{proxy.address[1]}"]) as client:
        for number in range(40):
            parts(client.generate(prompt="12", max_tokens=12, ignore_eos=True))
        expect(client.reconnects >= 10, f"only {client.reconnects} cuts")
        client.status()  # serves the connection until the last ACK is through
        wait_for(lambda: client.status() and server.metrics()["tandem_tcp_requests"] == 0, "all to be forgotten", 20)
        expect_equal(server.metrics()["tandem_tcp_expired_total"], 0, "requests that only their window ended")
    proxy.stop()
    server.stop()


@test(seconds=180)
def the_next_server_takes_over():
    first = start()
    second = start()
    with Client([first.tcp, second.tcp]) as client:
        parts(client.generate(prompt="12", max_tokens=2))
        first.stop()
        parts(client.generate(prompt="12", max_tokens=2))
    second.stop()


@test(seconds=180)
def many_streams_take_turns():
    server = start()
    with Client([server.tcp]) as client:
        asked = [{"messages": [{"role": "user", "content": question}], "temperature": 0} for question, _ in sums(32)]
        streams = [client.generate(**fields) for fields in asked]
        answers = [parts(stream)[0][0]["text"] for stream in streams]
        expect_equal(answers[:3], [server.chat(fields["messages"][0]["content"])["message"]["content"]
                                   for fields in asked[:3]], "texts")
    server.stop()


if __name__ == "__main__":
    main()
