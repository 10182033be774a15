"""The real program from outside: right answers, deaths of each process, clean ends, refusals."""
import json
import os
import re
import signal
import subprocess
import sys
import threading

from server import MODEL, PROGRAM, ROOT, Server, gone, run_tests, wait_until

QUESTIONS = ["What is 407 - 1295?", "12 * 34 = ?", "Compute 99 * 87.", "What is 5000 + 4999?"]
ANSWERS = [-888, 408, 8613, 9999]


def last_number(text):
    return int(re.findall(r"-?\d+", text)[-1])


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def test_sums_are_right_at_every_world_size():
    for config in ("configs/cpu-x1.yaml", "configs/cpu-x2.yaml", "configs/cpu-x4.yaml"):
        with Server(config=config) as server:
            for question, answer in zip(QUESTIONS, ANSWERS):
                message = server.ask(question)["choices"][0]["message"]
                expect(last_number(message["content"]) == answer, f"{config}: {question} {message['content']}")
                expect(message["reasoning_content"], "no reasoning")


def test_a_killed_worker_is_not_a_killed_stream():
    with Server() as server:
        undisturbed = [server.stream(question) for question in QUESTIONS]
        seeded = server.stream(QUESTIONS[0], temperature=1.5, seed=7)
        for rank in (0, 1):
            results = {}
            counts = [0]
            victim = server.children(f"--rank {rank}")
            expect(len(victim) == 1, f"workers of rank {rank}: {victim}")
            killed = threading.Event()

            def on_event(_event):
                counts[0] += 1
                if counts[0] == 40 and not killed.is_set():
                    killed.set()
                    os.kill(victim[0], signal.SIGKILL)

            def run(index):
                try:
                    if index == len(QUESTIONS):
                        results[index] = server.stream(QUESTIONS[0], on_event, temperature=1.5, seed=7)
                    else:
                        results[index] = server.stream(QUESTIONS[index], on_event)
                except Exception as error:  # reported below, beside what was wanted
                    results[index] = error

            threads = [threading.Thread(target=run, args=(i,)) for i in range(len(QUESTIONS) + 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            expect(killed.is_set(), "the streams ended before the kill")
            for index, wanted in enumerate(undisturbed + [seeded]):
                expect(results[index] == wanted, f"stream {index}: {results[index]}, undisturbed {wanted}")
            expect(victim[0] not in server.children("worker"), "the dead worker is still listed")


def test_the_server_comes_back_after_its_front_end_dies():
    with Server() as server:
        front = server.children("frontend")
        os.kill(front[0], signal.SIGKILL)

        def answers():
            try:
                return last_number(server.ask(QUESTIONS[1])["choices"][0]["message"]["content"]) == 408
            except (OSError, RuntimeError):
                return False
        expect(wait_until(answers), "no right answer after the front-end's death")


def test_nothing_survives_a_killed_supervisor():
    with Server() as server:
        children = server.children()
        expect(len(children) == 3, f"children {children}")
        server.process.kill()
        server.process.wait()
        expect(wait_until(lambda: gone(children), 5), "children survive")


def test_sigterm_ends_everything():
    with Server() as server:
        children = server.children()
        server.process.send_signal(signal.SIGTERM)
        expect(server.process.wait(10) == 0, f"exit code {server.process.returncode}")
        expect(gone(children), "children survive")


def test_bad_requests_get_their_own_error_and_disturb_nobody():
    cases = [
        ({"messages": [{"role": "user", "content": "x"}], "model": "nope"}, 404, "nope"),
        ({"model": MODEL, "messages": []}, 400, "messages"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "temperature": 9}, 400, "temperature"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400, "tools"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "1 " * 5000}]}, 400, "4096"),
    ]
    with Server() as server:
        for body, status, word in cases:
            got, text = server.request("POST", "/v1/chat/completions", body)
            message = json.loads(text)["error"]["message"]
            expect(got == status and word in message.replace(",", ""), f"{got} {message}, wanted {status} with {word}")
        expect(server.request("GET", "/health")[0] == 200, "/health")
        expect(server.request("GET", "/ready")[0] == 200, "/ready")
        expect(MODEL in server.request("GET", "/v1/models")[1], "/v1/models")
        expect("vllm:num_requests_running" in server.request("GET", "/metrics")[1], "/metrics")
        expect(last_number(server.ask(QUESTIONS[3])["choices"][0]["message"]["content"]) == 9999, "a sum")


def test_wrong_configurations_are_refused_before_anything_starts():
    cases = [("engine.max_num_seq=3", "max_num_seqs"), ("tp=99", "tp"), ("http.port=high", "http.port")]
    for assignment, word in cases:
        ended = subprocess.run([PROGRAM, "serve", str(ROOT / "configs/cpu-x2.yaml"), "--set", assignment],
                               capture_output=True, text=True, timeout=20)
        expect(ended.returncode != 0 and word in ended.stderr, f"{assignment}: {ended.returncode} {ended.stderr}")
        expect(ended.stdout == "", f"standard output: {ended.stdout}")


sys.exit(run_tests(globals()))
