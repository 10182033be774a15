"""Start, service and end of `tandem serve`."""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

from support import (MODEL, PROGRAM, ROOT, Server, answer_of, children, command_line, expect, expect_equal, in_threads, kill, main, run, stream, sums, test, wait_for)


@test
def ready_is_the_only_line_and_everything_serves():
    server = Server()
    expect_equal(server.request("GET", "/health")[0], 200, "/health")
    expect_equal(server.request("GET", "/ready")[0], 200, "/ready")
    models = json.loads(server.request("GET", "/v1/models")[2])
    expect_equal([model["id"] for model in models["data"]], ["tandem-r1-tiny"], "models")
    choice = server.chat("What is 407 - 1295?")
    expect_equal(answer_of(choice["message"]["content"]), "-888", "the answer")
    expect_equal(choice["finish_reason"], "stop", "finish_reason")
    expect(choice["message"]["reasoning_content"], "the reasoning is empty")
    server.stop()
    expect_equal(server.process.stdout.read(), "", "what follows the ready line")


@test
def processes_are_named_for_what_they_are():
    server = Server()
    lines = sorted(" ".join(command_line(pid)) for pid in children(server.pid))
    expect_equal(len(lines), 3, f"children ({lines})")
    expect(lines[0].startswith("tandem frontend "), lines[0])
    expect(lines[1].startswith("tandem worker --replica 0 --rank 0 "), lines[1])
    expect(lines[2].startswith("tandem worker --replica 0 --rank 1 "), lines[2])
    table = server.errors()
    for part in ("model", "tandem-r1-tiny", "TP       2 x cpu", "rank 0", "rank 1", "KV ", "blocks of 16", server.url):
        expect(part in table, f"{part!r} is not in the table:\n{table}")
    server.stop()


@test(seconds=120)
def every_topology_gives_the_same_answers():
    questions = [question for question, _ in sums(8)]
    answers = []
    for tp in (1, 2, 4):
        server = Server(config=f"configs/cpu-x{tp}.yaml")
        answers.append([server.chat(question)["message"]["content"] for question in questions])
        server.stop()
    expect_equal(answers[1], answers[0], "answers at TP 2")
    expect_equal(answers[2], answers[0], "answers at TP 4")


@test
def two_replicas_share_a_listener():
    server = Server("--set", "replicas=2", config="configs/cpu-x1.yaml")
    expect_equal(sorted(server.workers()), [(0, 0), (1, 0)], "workers")
    questions = sums(16)
    choices = in_threads([lambda q=question: server.chat(q) for question, _ in questions], 16)
    right = sum(answer_of(choice["message"]["content"]) == answer for choice, (_, answer) in zip(choices, questions))
    expect(right >= 15, f"{right} of 16 right")
    server.stop()


@test
def bad_requests_get_their_own_error_and_disturb_nobody():
    server = Server()
    question = [{"role": "user", "content": "x"}]
    cases = [({"messages": question, "model": "nope"}, 404, "nope"),
             ({"messages": []}, 400, "messages"),
             ({"messages": question, "temperature": 9}, 400, "temperature"),
             ({"messages": question, "tools": [{}]}, 400, "tools"),
             ({"messages": [{"role": "user", "content": "1 " * 5000}]}, 400, "4096"),
             ({"messages": question, "max_tokens": 5000}, 400, "max_tokens"),
             ({"messages": question, "n": 0}, 400, "n:"),
             ({"messages": question, "seeed": 1}, 400, "seed"),
             ([], 400, "object")]
    for body, wanted, part in cases:
        status, _, text = server.request("POST", "/v1/chat/completions", body)
        message = json.loads(text)["error"]["message"]
        expect(status == wanted and part in message, f"{str(body)[:80]}: {status} {message}")
    for data, part in ((b"{", "body"), (b'{"messages": "\xff"}', "body")):
        with contextlib.closing(server.connect()) as connection:
            connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            message = json.loads(reply.read())["error"]["message"]
            expect(reply.status == 400 and part in message, f"{data}: {reply.status} {message}")
    expect_equal(server.request("GET", "/nowhere")[0], 404, "status of an unknown path")
    expect_equal(answer_of(server.chat("3 + 4 = ?")["message"]["content"]), "7", "the answer")
    server.stop()


def end_by(number):
    server = Server()
    server.note_children()
    server.send_signal(number)
    expect_equal(server.wait(5), 0, "exit code")
    expect_equal(server.left_running(), [], "processes left")


@test
def sigterm_ends_it():
    end_by(signal.SIGTERM)


@test
def sigint_ends_it():
    end_by(signal.SIGINT)


@test
def a_hangup_ends_it_unless_it_was_started_with_hangups_ignored():
    server = Server(before=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    server.send_signal(signal.SIGHUP)
    expect_equal(server.wait(5), 0, "exit code")
    expect_equal(server.left_running(), [], "processes left")
    server = Server("--set", "drain_timeout=0", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    server.send_signal(signal.SIGHUP)  # arrives before the next one is sent
    expect_equal(answer_of(server.chat("3 + 4 = ?")["message"]["content"]), "7", "the answer")
    server.send_signal(signal.SIGTERM)
    expect_equal(server.wait(5), 0, "exit code")
    expect_equal(server.errors().count("ending;"), 1, "ends")
    expect("second signal: ending" not in server.errors(), server.errors())


@test
def a_parent_that_ignored_the_end_of_its_children_changes_nothing():
    server = Server(before=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    kill(server.workers()[0, 1])
    wait_for(lambda: "up again" in server.errors(), "the group to come back")
    server.stop()


@test
def standard_streams_that_are_closed_are_not_taken_by_others():
    server = Server(before=lambda: os.close(2))
    for pid in [server.pid, *children(server.pid)]:
        expect_equal(os.readlink(f"/proc/{pid}/fd/2"), "/dev/null", f"standard error of {command_line(pid)}")
    for url in f"http://{server.host}:{server.port}", f"tcp://{server.host}:{server.tcp_port}":
        chat = subprocess.run([PROGRAM, "chat", url, "--once", "3 + 4 = ?"], stderr=subprocess.PIPE, text=True, cwd=ROOT,
                              timeout=30, preexec_fn=lambda: os.close(1))
        expect_equal(chat.returncode, 1, f"exit code of {url} ({chat.stderr})")
        expect("standard output" in chat.stderr, chat.stderr)
    server.stop()


@test
def running_answers_may_end_and_new_ones_are_refused():
    server = Server("--set", "drain_timeout=30")
    worker = server.workers()[0, 1]
    kill(worker, signal.SIGSTOP)  # the answer cannot end before the drain was seen
    body = {"messages": [{"role": "user", "content": "12 * 34 = ?"}], "temperature": 0}
    done = []
    asking = threading.Thread(target=lambda: done.extend(in_threads([lambda: stream(server, body)], 1)), daemon=True)
    asking.start()
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 1, "the answer to begin")
    server.send_signal(signal.SIGTERM)
    wait_for(lambda: server.request("GET", "/ready")[0] == 503, "/ready to say no")
    expect_equal(server.request("POST", "/v1/chat/completions", body)[0], 503, "status of a new request")
    kill(worker, signal.SIGCONT)
    asking.join()
    expect(isinstance(done[0], dict), f"the answer that was under way: {done}")
    expect_equal(answer_of(done[0]["text"]), "408", "the answer that was under way")
    expect_equal(server.wait(), 0, "exit code")
    expect_equal(server.left_running(), [], "processes left")


@test
def a_second_signal_does_not_wait():
    server = Server("--set", "drain_timeout=1000")
    body = {"messages": [{"role": "user", "content": "12 * 34 = ?"}], "ignore_eos": True, "max_tokens": 3000}
    ends = []

    def note(result):
        if len(result["tokens"]) >= 5 and not ends:
            ends.append(1)
            kill(server.workers()[0, 1], signal.SIGSTOP)  # the answer cannot end
            server.send_signal(signal.SIGTERM)
            wait_for(lambda: "second signal" in server.errors(), "the drain to begin")
            server.send_signal(signal.SIGTERM)

    broken = in_threads([lambda: stream(server, body, note)], 1)[0]
    expect_equal(server.wait(5), 0, "exit code")
    expect(isinstance(broken, Exception) or broken["error"], "the cut stream looks whole")
    expect_equal(server.left_running(), [], "processes left")


@test
def nothing_survives_a_killed_supervisor():
    server = Server()
    server.note_children()
    expect_equal(len(server.all_pids), 3, "children")
    server.send_signal(signal.SIGKILL)
    server.wait()
    wait_for(lambda: not server.left_running(), "the children's end", 5)


@test
def a_supervisor_killed_while_it_starts_leaves_nothing():
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
        server = Server(ready=False)
        time.sleep(delay)
        server.note_children()
        server.send_signal(signal.SIGKILL)
        server.wait()
        wait_for(lambda: not server.left_running(), "the children's end", 5)


@test
def children_ignore_what_a_terminal_sends():
    server = Server()
    for pid in children(server.pid):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    expect_equal(answer_of(server.chat("3 + 4 = ?")["message"]["content"]), "7", "the answer")
    expect("restart" not in server.errors(), "something was started again")
    server.stop()


@test
def a_port_in_use_is_named():
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, errors = run("serve", "configs/cpu-x2.yaml", "--set", f"http.port={port}", "--set", "tcp.port=0")
    expect_equal((code, out), (1, ""), f"exit code and output ({errors})")
    expect(f"http.port: port {port} of 127.0.0.1 is in use" in errors, errors)


def broken_model(change):
    """A copy of the model after `change(directory)`; returns the temporary directory."""
    folder = tempfile.TemporaryDirectory()
    directory = os.path.join(folder.name, "broken")
    shutil.copytree(MODEL, directory)
    change(directory)
    return folder, directory


def truncate_weights(directory):
    path = os.path.join(directory, "model.safetensors")
    os.truncate(path, os.path.getsize(path) - 1000)


def misname_tensor(directory):
    path = os.path.join(directory, "model.safetensors")
    with open(path, "r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = file.read(size).replace(b"model.layers.3.mlp.up_proj.weight", b"model.layers.3.mlp.up_prog.weight")
        file.seek(8)
        file.write(header)


def widen_config(directory):
    path = os.path.join(directory, "config.json")
    with open(path) as file:
        config = json.load(file)
    config["intermediate_size"] += 64
    with open(path, "w") as file:
        json.dump(config, file)


def remove_weights(directory):
    os.unlink(os.path.join(directory, "model.safetensors"))


def break_tokenizer(directory):
    with open(os.path.join(directory, "tokenizer.json"), "w") as file:
        file.write("{")


def break_config(directory):
    with open(os.path.join(directory, "config.json"), "w") as file:
        file.write("[]")


@test(seconds=120)
def models_that_cannot_be_served_end_the_start_with_their_cause():
    cases = [(truncate_weights, "model.safetensors"), (misname_tensor, "up_proj"), (widen_config, "config.json asks for"),
             (remove_weights, "model.safetensors"), (break_tokenizer, "tokenizer.json"), (break_config, "config.json")]
    for change, part in cases:
        folder, directory = broken_model(change)
        with folder:
            code, out, errors = run("serve", "--model", directory, "--tp", "2", "--set", "http.port=0", "--set", "tcp.port=0", "--set",
                                    "memory_limit_gib=0.25")
        expect_equal((code, out), (1, ""), f"{change.__name__}: exit code and output ({errors})")
        expect(part in errors, f"{change.__name__}: {part!r} is not named:\n{errors}")
        expect("up again" not in errors, f"{change.__name__}: it was tried again")


@test(seconds=120)
def configurations_that_cannot_be_are_refused_before_anything_starts():
    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "bad.yaml")
    cases = [("engine:\n  max_num_seq: 3\n", "bad.yaml:3:3: engine.max_num_seq: unknown key; did you mean "
              "engine.max_num_seqs?"),
             ("tp: two\n", "bad.yaml:2:5: tp: must be a whole number from 1 to 16"),
             ("engine: {max_model_len: 5000}\n", "engine.max_model_len: 5000 is more than the model's 4096"),
             ("memory_limit_gib: 0.001\n", "memory_limit_gib"),
             ("http: {host: 0.0.0.0}\n", "give api_key_file")]
    with folder:
        for text, part in cases:
            with open(path, "w") as file:
                file.write(f"model: {MODEL}\n{text}")
            code, out, errors = run("serve", path)
            expect_equal((code, out), (1, ""), f"{text!r}: exit code and output ({errors})")
            expect(part in errors, f"{text!r}: {part!r} is not said:\n{errors}")
    code, _, errors = run("serve", "configs/cpu-x2.yaml", "--set", "http.prot=0")
    expect_equal(code, 2, f"exit code of a wrong flag ({errors})")
    expect("did you mean http.port?" in errors, errors)
    code, _, errors = run("serve")
    expect_equal(code, 2, f"exit code without a model ({errors})")
    code, _, errors = run("serve", "/does/not/exist.yaml")
    expect_equal(code, 1, f"exit code of a missing file ({errors})")
    expect("/does/not/exist.yaml" in errors, errors)


@test
def keys_of_a_file_are_asked_for():
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write("# people\nsecret-one\nsecret-two\n")
        file.flush()
        server = Server("--set", f"api_key_file={file.name}", "--set", "http.host=0.0.0.0")
        expect_equal(server.host, "0.0.0.0", "the address")
        server.host = "127.0.0.1"
        body = {"messages": [{"role": "user", "content": "3 + 4 = ?"}], "temperature": 0}
        expect_equal(server.request("POST", "/v1/chat/completions", body)[0], 401, "status without a key")
        wrong = {"Authorization": "Bearer secret"}
        expect_equal(server.request("POST", "/v1/chat/completions", body, wrong)[0], 401, "status with a wrong key")
        right = {"Authorization": "Bearer secret-two"}
        expect_equal(server.request("POST", "/v1/chat/completions", body, right)[0], 200, "status with a key")
        with tempfile.NamedTemporaryFile("w", suffix=".key") as one:
            one.write("secret-one\n")
            one.flush()
            code, out, errors = run("chat", f"127.0.0.1:{server.port}", "--once", "3 + 4 = ?", "--api-key-file", one.name)
            expect_equal(code, 0, f"exit code of chat ({errors})")
            expect_equal(answer_of(out), "7", "the answer in the chat")
        server.stop()


if __name__ == "__main__":
    main()
