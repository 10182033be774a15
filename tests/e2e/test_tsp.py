"""The stream protocol of a real server, spoken by an independent client: everything that HTTP can ask for, with the same
answers; requests that outlive connections and front-ends; slow readers; drains; keys."""

import json
import os
import random
import resource
import socket
import struct
import tempfile
import threading
import time

import tsp_codec as tsp
from support import Server, expect, expect_equal, in_threads, kill, main, run, stream, sums, test, wait_for
from tsp_client import Connection, Cut, Refused, Request, ask, carry
from tsp_proxy import Proxy

FINISH = {1: "stop", 2: "length"}


def server_of(*arguments, config="configs/cpu-x1.yaml"):
    server = Server(*arguments, config=config)
    server.tcp = (server.host, server.tcp_port)
    return server


def message(text, role="user"):
    return tsp.nested(7, [tsp.text(1, role), tsp.text(3, text)])


def chat(question, **fields):
    """The fields of a SUBMIT, and the JSON body that asks the same of HTTP."""
    tags = {"temperature": (15, tsp.f32), "top_p": (17, tsp.f32), "top_k": (19, tsp.u32), "min_p": (21, tsp.f32),
            "repetition_penalty": (23, tsp.f32), "presence_penalty": (25, tsp.f32), "frequency_penalty": (27, tsp.f32),
            "seed": (29, tsp.u64), "max_tokens": (11, tsp.u32), "n": (13, tsp.u32), "ignore_eos": (39, tsp.u8),
            "include_reasoning": (45, tsp.u8), "skip_special_tokens": (43, tsp.u8),
            "include_stop_str_in_output": (41, tsp.u8)}
    frame = [message(question)]
    body = {"messages": [{"role": "user", "content": question}]}
    for name, value in {"temperature": 0, **fields}.items():
        if name == "stop":
            frame += [tsp.text(31, one) for one in value]
        else:
            tag, make = tags[name]
            frame.append(make(tag, value))
        body[name] = bool(value) if make is tsp.u8 and name != "stop" else value
    return frame, body


def questions(count):
    """Greedy and seeded requests, short and long ones."""
    made = []
    for index, (question, _) in enumerate(sums(count)):
        fields = {}
        if index % 3 == 1:
            fields = {"temperature": 1.2, "seed": index, "top_p": 0.95}
        if index % 3 == 2:
            fields = {"temperature": 0.8, "seed": index, "repetition_penalty": 1.05, "top_k": 40, "max_tokens": 120,
                      "ignore_eos": 1}
        made.append(chat(question, **fields)[0])
    return made


def expect_refused(code, function):
    try:
        function()
    except Refused as refused:
        expect_equal(refused.code, code, f"code ({refused.text})")
        return refused
    raise AssertionError(f"not refused with {code}")


# ---- what can be asked


@test(seconds=180)
def answers_are_those_of_http():
    server = server_of()
    question = "What is 123 + 456?"
    for fields in ({}, {"temperature": 1.0, "seed": 7, "top_p": 0.9, "min_p": 0.01}, {"max_tokens": 9},
                   {"stop": ["\n"]}, {"stop": ["+0", "=0"], "include_stop_str_in_output": 1},
                   {"temperature": 0.7, "seed": 3, "top_k": 5, "presence_penalty": 0.5, "frequency_penalty": -0.25},
                   {"include_reasoning": 0}, {"ignore_eos": 1, "max_tokens": 90, "repetition_penalty": 1.1}):
        frame, body = chat(question, **fields)
        choice = server.chat(question, **{key: value for key, value in body.items() if key != "messages"})
        request = ask(server.tcp, frame, credit=16)
        got = request.choices[0]
        expect_equal(got.text.decode(), choice["message"]["content"], f"text of {fields}")
        expect_equal(got.reasoning.decode(), choice["message"].get("reasoning_content") or "", f"reasoning of {fields}")
        expect_equal(FINISH[got.finish], choice["finish_reason"], f"finish of {fields}")
    server.stop()


@test(seconds=180)
def several_choices_and_usage():
    server = server_of()
    frame, body = chat("What is 5 + 6?", n=3, temperature=1.5, seed=11, max_tokens=40)
    status, _, text = server.request("POST", "/v1/chat/completions", body)
    expect_equal(status, 200, "status")
    reply = json.loads(text)
    request = ask(server.tcp, frame)
    expect_equal([choice.text.decode() for choice in request.choices],
                 [choice["message"]["content"] for choice in reply["choices"]], "texts")
    usage = reply["usage"]
    expect_equal(request.usage, (usage["prompt_tokens"], usage["completion_tokens"],
                                 usage["completion_tokens_details"]["reasoning_tokens"]), "usage")
    server.stop()


@test(seconds=180)
def prompts_texts_ids_echo_and_logprobs():
    server = server_of()
    prompts = ["12 + 30", [15, 16, 17]]
    body = {"prompt": prompts[0], "temperature": 0, "max_tokens": 12, "logprobs": 3}
    _, _, text = server.request("POST", "/v1/completions", body)
    reply = json.loads(text)["choices"][0]
    common = [tsp.f32(15, 0), tsp.u32(11, 12)]
    request = ask(server.tcp, [tsp.text(3, prompts[0]), tsp.u32(37, 3), *common])
    got = request.choices[0]
    expect_equal(got.text.decode(), reply["text"], "text")
    chosen = [entry[0] for entry in got.logprobs]
    expect_equal([token for token, _, _ in chosen], got.ids, "ids of log-probabilities")
    shown = len(reply["logprobs"]["token_logprobs"])
    for (_, logprob, _), wanted in zip(chosen[:shown], reply["logprobs"]["token_logprobs"]):
        expect(abs(logprob - wanted) < 1e-6, f"{logprob} for {wanted}")
    expect(all(len(tops) == 3 for _, tops in got.logprobs), "three alternatives each")
    expect_equal(got.logprobs[0][0][2].decode(), reply["logprobs"]["tokens"][0], "a token's text")

    request = ask(server.tcp, [tsp.text(3, prompts[0]), tsp.u32s(5, prompts[1]), tsp.u8(47, 1), tsp.u32(13, 2),
                               *common])
    expect_equal(len(request.choices), 4, "choices of two prompts")
    _, _, text = server.request("POST", "/v1/completions",
                                {"prompt": prompts[1], "temperature": 0, "max_tokens": 12, "echo": True})
    wanted = json.loads(text)["choices"][0]["text"]
    expect_equal(request.choices[2].text.decode(), wanted, "echo of ids")
    expect(request.choices[0].text.startswith(b"12 + 30"), request.choices[0].text)
    server.stop()


@test(seconds=180)
def refusals_name_field_and_code():
    server = server_of()
    hello = message("hello")
    cases = [
        (2001, "temperature", [hello, tsp.f32(15, 9)]),
        (2001, "temperature", [hello, tsp.f32(15, float("nan"))]),
        (2001, "prompt", [tsp.u32(11, 5)]),
        (2001, "prompt", [hello, tsp.text(3, "and")]),
        (2001, "n", [hello, tsp.u32(13, 17)]),
        (2001, "prompt[0][1]", [tsp.u32s(5, [1, 99999])]),
        (2001, "messages[0].role", [message("x", "oracle")]),
        (2001, "stop", [hello, tsp.text(31, "")]),
        (2001, "logprobs", [hello, tsp.u32(37, 21)]),
        (2001, "include_reasoning", [tsp.text(3, "x"), tsp.u8(45, 0)]),
        (2001, "prompt", [tsp.text(3, b"\xff")]),
        (2001, "logit_bias", [hello, (35, struct.pack("<IfIf", 5, 1, 5, 2))]),
        (2002, "model", [hello, tsp.text(9, "gpt-9")]),
        (2004, "max_tokens", [hello, tsp.u32(11, 1 << 20)]),
        (3002, "", [hello, tsp.u32(55, 0)]),
    ]
    connection = Connection(server.tcp)
    for code, param, fields in cases:
        request = Request(fields)
        stream_id = request.submit(connection)
        refused = expect_refused(code, lambda s=stream_id: connection.expect(tsp.ACCEPTED, s))
        expect_equal(refused.param, param, f"param of {refused.text!r}")
        expect_equal(refused.retry_after_ms is not None, code // 1000 == 3, "retry_after_ms")
    # The connection has seen nothing of it.
    request = Request(chat("What is 1 + 1?")[0])
    request.submit(connection)
    while not request.take(connection, connection.receive()):
        pass
    expect(b"2" in request.choices[0].text, request.choices[0].text)
    connection.close()
    server.stop()


# ---- the connection


@test(seconds=180)
def broken_frames_end_the_connection_with_a_code():
    server = server_of()
    good = tsp.frame(tsp.PING, 0, [tsp.u64(1, 1)])
    cases = [
        (1001, good[:-1] + b"\xee"),
        (1002, tsp.frame(tsp.PING, 0, [tsp.u64(1, 1), (99, b"")])),
        (1002, tsp.frame(tsp.HELLO, 0, [tsp.u32(1, tsp.VERSION), tsp.u32(1, tsp.VERSION)])),
        (1003, tsp.frame(77)),
        (1003, tsp.frame(tsp.TOKENS, 1, [tsp.u32(1, 0), tsp.u64(3, 0), tsp.u32s(5, [1])])),
        (1005, tsp.frame(tsp.CREDIT, 5, [tsp.u32(1, 1)])),
        (1006, tsp.HEADER.pack(1 << 30, tsp.PING, 0, 0, 0, 0)),
    ]
    for code, data in cases:
        connection = Connection(server.tcp)
        connection.send_bytes(data)
        kind, _, stream_id, fields = connection.receive()
        expect_equal((kind, stream_id), (tsp.ERROR, 0), f"frame for {data[:20]!r}")
        expect_equal(tsp.number(fields, 1), code, tsp.value(fields, 3).decode())
        try:
            connection.receive()
            raise AssertionError("still open")
        except Cut:
            pass
    connection = Connection(server.tcp)
    connection.send_bytes(tsp.frame(200, 0, flags=tsp.OPTIONAL) + good)  # an optional one is passed over
    connection.expect(tsp.PONG)
    connection.close()
    for hello, code in ((b"SSH-2.0-OpenSSH_9.2", 1001), (tsp.MAGIC + good, 1002),
                        (tsp.MAGIC + tsp.frame(tsp.HELLO, 0, [tsp.u32(1, 2 << 16)]), 1004)):
        connection = Connection(server.tcp, hello=False)
        connection.send_bytes(hello)
        expect_equal(tsp.number(connection.expect(tsp.ERROR), 1), code, "code of a bad beginning")
    with socket.create_connection(server.tcp) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv(4096).startswith(b"HTTP/1.1 400 "), "HTTP is told where it is")
    server.stop()


@test(seconds=180)
def keys_open_and_keep_requests_apart():
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("alpha-key\nbeta-key\n")
        keys.flush()
        server = server_of("--set", f"api_key_file={keys.name}")
        for key in (None, "", "alpha", "gamma-key"):
            expect_refused(4001, lambda k=key: Connection(server.tcp, k))
        first = Connection(server.tcp, "alpha-key")
        second = Connection(server.tcp, "beta-key")
        request = Request(chat("What is 1 + 2?", ignore_eos=1, max_tokens=3000)[0], credit=4)
        stream_id = request.submit(first)
        request.take(first, first.receive())
        for kind in (tsp.RESUME, tsp.CANCEL):
            second_stream = second.next_stream()
            second.send(kind, second_stream, [(1, request.id)])
            expect_refused(4002, lambda s=second_stream: second.expect(tsp.ACCEPTED, s))
        twin = Request(chat("What is 1 + 2?", max_tokens=3)[0])  # the same id under another key is another request
        twin.fields[0] = (1, request.id)
        twin.id = request.id
        twin.submit(second)
        while not twin.take(second, second.receive()):
            pass
        expect_equal(twin.choices[0].finish, tsp.LENGTH, "finish of the twin")
        third = Connection(server.tcp, "alpha-key")
        third.send(tsp.CANCEL, 1, [(1, request.id)])
        expect_equal(third.receive()[:3], (tsp.ACCEPTED, tsp.END, 1), "answer to CANCEL of an id")
        while not request.take(first, first.receive()):
            pass
        expect_equal(request.choices[0].finish, tsp.CANCELLED, "finish")
        first.send(tsp.ACK, stream_id)
        expect("alpha-key" not in server.errors(), "a key in the log")
        server.stop()


@test(seconds=180)
def a_silent_peer_is_closed_and_its_request_lives():
    server = server_of("--set", "tcp.ping_interval=1")
    request = Request(chat("What is 20 + 22?", ignore_eos=1, max_tokens=200)[0], credit=5)
    connection = Connection(server.tcp)
    request.submit(connection)
    request.take(connection, connection.receive())
    buffer = bytearray(connection.buffer)  # what came with that frame
    while True:  # reads on and answers nothing
        data = connection.socket.recv(65536)
        if not data:
            break
        buffer += data
    kinds = []
    while (frame := tsp.take_frame(buffer)) is not None:
        kinds.append(frame[0])
        if frame[0] == tsp.TOKENS:
            request.take(connection, frame)
        elif frame[0] == tsp.ERROR:
            expect_equal(tsp.number(frame[3], 1), 1007, "code")
    expect_equal([kind for kind in kinds if kind != tsp.TOKENS], [tsp.PING, tsp.ERROR], "frames to a silent peer")
    carry(server.tcp, [request])
    expect_equal(len(request.choices[0].ids), 200, "ids in all")
    with socket.create_connection(server.tcp) as client:  # one that never says HELLO is closed too
        client.settimeout(30)
        expect(b"no HELLO" in client.recv(4096), "time-out of the handshake")
    server.stop()


# ---- requests that outlive connections


@test(seconds=300)
def cut_connections_lose_nothing():
    server = server_of()
    asked = questions(24)
    wanted = [ask(server.tcp, fields).result() for fields in asked]
    chance = random.Random(20261125)
    proxy = Proxy(server.tcp, 3000, 1)
    groups = []
    for first in range(0, 24, 6):
        groups.append([Request(fields, credit=chance.choice((None, 3, 50))) for fields in asked[first : first + 6]])
    before = server.metrics()["tandem_tcp_submits_total"]
    in_threads([lambda g=group: carry(proxy.address, g, doubled=lambda: chance.random() < 0.5) for group in groups], 4)
    for index, request in enumerate(request for group in groups for request in group):
        expect_equal(request.result(), wanted[index], f"answer {index}")
    expect_equal(server.metrics()["tandem_tcp_submits_total"] - before, 24, "requests that ran")
    expect(proxy.cuts >= 20, f"{proxy.cuts} cuts")
    expect_equal(server.metrics()["tandem_tcp_requests"], 0, "requests of which an ACK was lost for good")
    proxy.stop()
    server.stop()


@test(seconds=180)
def a_submit_runs_once_and_is_remembered():
    server = server_of("--set", "tcp.resume_window=5")
    fields = chat("What is 31 + 11?")[0]
    request = Request(fields)
    connection = Connection(server.tcp)
    first = request.submit(connection)
    second = request.submit(connection)  # attaches, and supersedes the first
    answers = {first: [], second: []}
    while not (answers[second] and answers[second][-1][1] & tsp.END):
        frame = connection.receive()
        answers[frame[2]].append(frame)
    if first_end := [frame for frame in answers[first] if frame[1] & tsp.END]:
        code = tsp.number(first_end[0][3], 1)
        expect(first_end[0][0] == tsp.ERROR and code == 4004, f"{first_end}")
    for frame in answers[second]:
        request.take(connection, frame)
    expect_equal(server.metrics()["tandem_tcp_submits_total"], 1, "submits")

    other = Request(chat("What is 2 + 2?")[0])
    other.fields[0] = (1, request.id)
    stream_id = other.submit(connection)
    expect_refused(2005, lambda: connection.expect(tsp.ACCEPTED, stream_id))

    stream_id = request.submit(connection)  # ended, not acknowledged: the whole answer again
    again = Request(fields)
    again.id = request.id
    while not again.take(connection, connection.receive()):
        pass
    expect_equal(again.result(), request.result(), "the answer again")
    connection.send(tsp.ACK, stream_id)
    for attempt in (request.submit, request.resume):
        stream_id = attempt(connection)
        expect_refused(4003, lambda s=stream_id: connection.expect(tsp.ACCEPTED, s))
    wait_for(lambda: server.metrics()["tandem_tcp_forgotten_requests"] == 0, "the memory's end")
    stream_id = request.resume(connection)
    expect_refused(4002, lambda: connection.expect(tsp.ACCEPTED, stream_id))
    connection.close()
    server.stop()


@test(seconds=180)
def the_window_ends_what_nobody_resumes():
    server = server_of("--set", "tcp.resume_window=5")  # GONE has so long to be asked for
    lost = Request(chat("What is 1 + 1?", ignore_eos=1, max_tokens=3900)[0], credit=3)
    connection = Connection(server.tcp)
    lost.submit(connection)
    lost.take(connection, connection.receive())
    connection.close(reset=True)
    wait_for(lambda: server.metrics()["tandem_tcp_expired_total"] == 1, "the end of the window")
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0, "the request's end")
    connection = Connection(server.tcp)
    stream_id = lost.resume(connection)
    expect_refused(4003, lambda: connection.expect(tsp.ACCEPTED, stream_id))

    fields = chat("What is 1 + 1?", ignore_eos=1, max_tokens=3900)[0]
    frail = Request([*fields, tsp.u8(59, 1)], credit=3)  # on_disconnect: cancel
    frail.submit(connection)
    frail.take(connection, connection.receive())
    connection.close()
    wait_for(lambda: server.metrics()["tandem_tcp_requests"] == 0, "the request's end")
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0, "the sequence's end")
    expect_equal(server.metrics()["tandem_tcp_expired_total"], 1, "windows that ended")
    server.stop()


@test(seconds=300)
def a_killed_frontend_is_not_a_killed_stream():
    server = server_of("--set", "replicas=2")
    asked = questions(16)
    wanted = [ask(server.tcp, fields).result() for fields in asked]
    for delay in (0.05, 0.2, 0.4):
        requests = [Request(fields, credit=40) for fields in asked]
        http = {}
        endless = {"messages": [{"role": "user", "content": "go on"}], "ignore_eos": True, "max_tokens": 3000}

        def ask_http():
            http["done"] = in_threads([lambda: stream(server, endless, lambda result: http.update(begun=True))], 1)

        threads = [threading.Thread(target=carry, args=(server.tcp, requests[:8]), daemon=True),
                   threading.Thread(target=carry, args=(server.tcp, requests[8:]), daemon=True),
                   threading.Thread(target=ask_http, daemon=True)]
        for thread in threads:
            thread.start()
        wait_for(lambda: http.get("begun") and any(request.times for request in requests), "the first frames")
        time.sleep(delay)
        victim = server.frontend()
        kill(victim)
        for thread in threads:
            thread.join(120)
        for index, request in enumerate(requests):
            expect(request.ended, f"stream {index} did not end")
            expect_equal(request.result(), wanted[index], f"stream {index} after {delay} s")
        expect(isinstance(http["done"][0], Exception), "an HTTP stream outlived its front-end")
        expect(server.frontend() != victim, "the same front-end")
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0, "the HTTP request's end")
    server.stop()


@test(seconds=120)
def ended_and_forgotten_requests_outlive_the_frontend_too():
    server = server_of()
    connection = Connection(server.tcp)
    kept = Request(chat("What is 7 + 8?", n=2, temperature=0.9, seed=4)[0])
    gone = Request(chat("What is 8 + 8?")[0])
    kept.submit(connection)
    while not kept.take(connection, connection.receive()):
        pass
    stream_id = gone.submit(connection)
    while not gone.take(connection, connection.receive()):
        pass
    connection.send(tsp.ACK, stream_id)
    life = tsp.number(connection.welcome, 11)
    wait_for(lambda: server.metrics()["tandem_tcp_forgotten_requests"] == 1, "the ACK")
    kill(server.frontend())
    connection = wait_for(lambda: try_connect(server.tcp), "the next front-end")
    expect_equal(tsp.number(connection.welcome, 11), life, "life")
    again = Request([])
    again.fields, again.id = kept.fields, kept.id
    again.submit(connection)
    while not again.take(connection, connection.receive()):
        pass
    expect_equal(again.result(), kept.result(), "the kept answer")
    stream_id = gone.submit(connection)
    expect_refused(4003, lambda: connection.expect(tsp.ACCEPTED, stream_id))
    connection.close()
    server.stop()


def fill_descriptors(server):
    """Leaves the supervisor room for no more descriptors than it has; returns the limits it had."""
    had = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), had[1]))
    return had


@test(seconds=120)
def a_frontend_that_cannot_be_started_at_once_finds_the_requests_later():
    server = server_of("--set", "log.level=debug")
    fields = chat("What is 7 + 8?", ignore_eos=1, max_tokens=250)[0]
    wanted = ask(server.tcp, fields).result()
    wait_for(lambda: "descriptors of worker" in server.errors(), "the audit, which opens some for a moment")
    request = Request(fields)
    thread = threading.Thread(target=carry, args=(server.tcp, [request]), daemon=True)
    thread.start()
    wait_for(lambda: request.times, "the first frame")
    had = fill_descriptors(server)
    kill(server.frontend())
    wait_for(lambda: "the front-end cannot be started" in server.errors(), "the start that fails")
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, had)
    thread.join(60)
    expect(request.ended, "the stream did not end")
    expect_equal(request.result(), wanted, "the answer")
    server.stop()


def try_connect(address):
    try:
        return Connection(address)
    except (Cut, Refused):
        return None


# ---- flow control, cancel, overload, drain


@test(seconds=120)
def a_slow_stream_holds_back_only_itself():
    server = server_of()
    connection = Connection(server.tcp)
    slow = Request(chat("What is 1 + 1?", ignore_eos=1, max_tokens=600)[0], credit=0)
    slow_stream = slow.submit(connection)
    slow.take(connection, connection.receive())
    fields = chat("What is 40 + 2?")[0]
    for _ in range(4):
        request = Request(fields)
        stream_id = request.submit(connection)
        while True:
            frame = connection.receive()
            expect_equal(frame[2], stream_id, "a frame without credit")
            if request.take(connection, frame):
                break
        connection.send(tsp.ACK, stream_id)
    slow.credit = slow.granted = 10
    connection.send(tsp.CREDIT, slow_stream, [tsp.u32(1, 10)])
    while not slow.take(connection, connection.receive()):
        pass
    expect_equal(len(slow.choices[0].ids), 600, "ids of the slow stream")
    connection.close()
    server.stop()


@test(seconds=180)
def cancel_ends_with_what_was_delivered():
    server = server_of()
    connection = Connection(server.tcp)
    request = Request(chat("What is 1 + 1?", ignore_eos=1, max_tokens=3000, n=2)[0], credit=20)
    stream_id = request.submit(connection)
    while sum(len(choice.ids) for choice in request.choices) < 100:
        expect(not request.take(connection, connection.receive()), "an end before the cancel")
    connection.send(tsp.CANCEL, stream_id)
    connection.send(tsp.CANCEL, stream_id)
    while not request.take(connection, connection.receive()):
        pass
    expect_equal([choice.finish for choice in request.choices], [tsp.CANCELLED] * 2, "finish")
    expect_equal(request.usage[1], sum(len(choice.ids) for choice in request.choices), "completion tokens")
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0, "the sequences' end")
    connection.send(tsp.ACK, stream_id)
    connection.close()
    server.stop()


@test(seconds=180)
def a_full_queue_answers_at_once():
    server = server_of("--set", "engine.queue=2", "--set", "engine.max_num_seqs=1")
    connection = Connection(server.tcp)
    fields = chat("What is 1 + 1?", ignore_eos=1, max_tokens=3900)[0]
    held = [Request(fields, credit=1) for _ in range(3)]
    held[0].submit(connection)
    held[0].take(connection, connection.receive())
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 1, "the first to run")
    for request in held[1:]:
        request.submit(connection)
    wait_for(lambda: server.metrics()["vllm:num_requests_waiting"] == 2, "the queue to fill")
    over = Connection(server.tcp)
    stream_id = Request(fields).submit(over)
    refused = expect_refused(3001, lambda: over.expect(tsp.ACCEPTED, stream_id))
    expect(refused.retry_after_ms >= 100, f"retry after {refused.retry_after_ms}")
    over.send(tsp.STATUS)
    status = over.expect(tsp.STATUS_REPLY)
    expect_equal([tsp.number(status, tag) for tag in (1, 3, 5, 9, 11, 13)], [1, 2, 2, 1, 1, 0], "status")
    server.stop()


@test(seconds=180)
def a_deadline_that_the_queue_takes_is_refused_at_once():
    server = server_of("--set", "engine.max_num_seqs=1")
    connection = Connection(server.tcp)
    requests = {}

    def submit(*fields):
        request = Request([*chat("What is 1 + 1?")[0], *fields])
        requests[request.submit(connection)] = request
        return request

    def wait_for_end_of(request):
        while not (request.ended or request.error):
            frame = connection.receive()
            requests[frame[2]].take(connection, frame)

    queue = []
    urgent = None
    # Nobody is refused on a guess: the first may be taken in, before enough of a queue was seen to tell its length.
    while urgent is None or urgent.error.code == 5002:
        ended = sum(request.ended for request in queue)
        expect(ended < 1000, "never refused behind a long queue")
        queue += [submit(tsp.u8(39, 1), tsp.u32(11, 60)) for _ in range(40 + ended - len(queue))]
        urgent = submit(tsp.u32(55, 1))
        wait_for_end_of(urgent)
        expect(urgent.error, "answered behind a long queue")
    patient = submit(tsp.u32(55, 600000))
    wait_for_end_of(patient)
    expect_equal(urgent.error.code, 3002, "code")
    expect(urgent.error.retry_after_ms >= 100, str(urgent.error.retry_after_ms))
    expect(patient.ended, str(patient.error))
    late = Request([*chat("What is 1 + 1?", ignore_eos=1, max_tokens=3900)[0], tsp.u32(55, 300)])
    late.submit(connection)
    while not late.take(connection, connection.receive()):
        pass
    expect_equal(late.error.code, 5002, "code of a deadline that passes on the way")
    connection.close()
    server.stop()


@test(seconds=180)
def a_drain_is_announced_and_running_answers_end():
    server = server_of("--set", "drain_timeout=60")
    connection = Connection(server.tcp)
    running = Request(chat("What is 1 + 1?", ignore_eos=1, max_tokens=500)[0])
    stream_id = running.submit(connection)
    running.take(connection, connection.receive())
    server.send_signal(15)
    late_stream = None
    last = None
    while last != tsp.BYE:
        frame = connection.receive()
        last = frame[0]
        if last == tsp.DRAIN:
            late_stream = Request(chat("late")[0]).submit(connection)
        elif frame[2] == late_stream and late_stream:
            expect_equal((last, tsp.number(frame[3], 1)), (tsp.ERROR, 3003), "a late SUBMIT")
        elif frame[2] == stream_id:
            running.take(connection, frame)
    expect(running.ended and late_stream is not None, "the running answer was cut off")
    expect_equal(len(running.choices[0].ids), 500, "ids")
    expect_equal(server.wait(), 0, "exit code")


@test(seconds=120)
def many_streams_on_one_connection():
    server = server_of()
    asked = questions(64)
    connection = Connection(server.tcp)
    streams = {}
    for fields in asked:
        request = Request(fields, credit=16)
        streams[request.submit(connection)] = request
    left = len(streams)
    while left:
        frame = connection.receive()
        if streams[frame[2]].take(connection, frame):
            expect(streams[frame[2]].error is None, str(streams[frame[2]].error))
            connection.send(tsp.ACK, frame[2])
            left -= 1
    wait_for(lambda: server.metrics()["tandem_tcp_requests"] == 0, "all to be forgotten")
    wait_for(lambda: server.metrics()["tandem_journal_used_bytes"] == 0, "an empty journal")
    connection.close()
    server.stop()


@test(seconds=180)
def ports_hosts_and_sections_are_checked():
    for code, arguments, text in ((1, ("tcp.host=0.0.0.0",), "tcp.host: other hosts can reach 0.0.0.0"),
                                  (1, ("tcp.port=9000", "http.port=9000"), "tcp.port: 9000 is http.port already"),
                                  (2, ("tcp.resume_window=0",), "tcp.resume_window")):
        sets = [part for argument in arguments for part in ("--set", argument)]
        actual, _, errors = run("serve", "configs/cpu-x1.yaml", *sets)
        expect_equal(actual, code, f"exit code of {arguments} ({errors})")
        expect(text in errors, errors)


if __name__ == "__main__":
    main()
