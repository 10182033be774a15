"""What the end-to-end tests share: a runner, a server under test, and a client. Standard library only.

The program under test is $TANDEM, else build/release/tandem. A test is a function marked with @test; each gets a time
limit and loses the servers it started. The last line printed reads "N passed, N failed"."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.environ.get("TANDEM", os.path.join(ROOT, "build", "release", "tandem"))
MODEL = os.path.join(ROOT, "configs", "models", "tandem-r1-tiny")

_tests = []
_servers = []


class Skip(Exception):
    """What is needed is not here; the text says what."""


def test(function=None, seconds=60):
    """Marks a test. `seconds` is when it counts as hung, not a measure of anything."""
    if function is None:
        return lambda marked: test(marked, seconds)
    _tests.append((function, seconds))
    return function


def _on_alarm(_signal, _frame):
    raise TimeoutError("no end in sight")


def _run(function, seconds):
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.alarm(seconds)
    try:
        function()
        return "ok", ""
    except Skip as reason:
        return "skip", str(reason)
    except BaseException:  # a hang or a KeyboardInterrupt must not leave servers behind
        return "FAIL", traceback.format_exc()
    finally:
        signal.alarm(0)
        for server in _servers:
            server.kill()


def main():
    """Runs the tests whose name contains the first argument (all without one)."""
    if not os.access(PROGRAM, os.X_OK):
        print(f"{PROGRAM} is not there; build it first (launcher/quickstart.sh --build-only)")
        print("0 passed, 1 failed")
        sys.exit(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    counts = {"ok": 0, "FAIL": 0, "skip": 0}
    for function, seconds in _tests:
        if wanted not in function.__name__:
            continue
        start = time.monotonic()
        result, text = _run(function, seconds)
        if result == "FAIL":
            for server in _servers:
                text += f"\n--- standard error of {' '.join(server.arguments)}\n{server.errors()[-4000:]}"
        _servers.clear()
        counts[result] += 1
        print(f"{result:4} {function.__name__} ({time.monotonic() - start:.1f} s){': ' if text else ''}{text}", flush=True)
    skipped = f", {counts['skip']} skipped" if counts["skip"] else ""
    print(f"{counts['ok']} passed, {counts['FAIL']} failed{skipped}")
    sys.exit(1 if counts["FAIL"] else 0)


def expect(condition, text="not as expected"):
    if not condition:
        raise AssertionError(text)


def expect_equal(actual, expected, what="value"):
    if actual != expected:
        raise AssertionError(f"{what} is {actual!r}, expected {expected!r}")


def wait_for(condition, what, seconds=30):
    """Waits until condition() is true and returns its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


# ---- processes


def command_line(pid):
    """The arguments of a process; [] when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [part.decode() for part in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def children(pid):
    """Process ids of the children of `pid`, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(entry))
    return sorted(found)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid, number=signal.SIGKILL):
    """Signals a process; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def run(*arguments, stdin="", timeout=60):
    """Runs the program to its end; returns (exit code, standard output, standard error)."""
    done = subprocess.run([PROGRAM, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


class Server:
    """`tandem serve` on a free port. `before` is called in the new process, in front of the program."""

    def __init__(self, *arguments, config="configs/cpu-x2.yaml", ready=True, pass_fds=(), before=None):
        if config is not None:
            arguments = (config, *arguments)
        self.arguments = ["serve", *arguments, "--set", "http.port=0", "--set", "tcp.port=0"]
        self.stderr = tempfile.NamedTemporaryFile("ab")
        self.process = subprocess.Popen(
            [PROGRAM, *self.arguments], stdout=subprocess.PIPE, stderr=self.stderr, stdin=subprocess.DEVNULL, text=True,
            cwd=ROOT, pass_fds=pass_fds, preexec_fn=before)
        self.pid = self.process.pid
        self.all_pids = set()
        _servers.append(self)
        if ready:
            self.wait_ready()

    def wait_ready(self):
        line = self.process.stdout.readline()
        expect(line.startswith("ready http="), f"the first line is {line!r}; it ended with {self.process.poll()}: "
               f"{self.errors()[-2000:]}")
        http_address, tcp_address = (part.partition("=")[2] for part in line.split()[1:])
        self.host, _, port = http_address.rpartition(":")
        self.port = int(port)
        self.tcp_port = int(tcp_address.rpartition(":")[2])
        self.url = f"http://{self.host}:{self.port}"
        self.note_children()

    def note_children(self):
        self.all_pids.update(children(self.pid))

    def errors(self):
        with open(self.stderr.name, encoding="utf-8", errors="replace") as file:
            return file.read()

    def workers(self):
        """Pids of the workers by (replica, rank)."""
        found = {}
        for pid in children(self.pid):
            line = command_line(pid)
            if line[1:2] == ["worker"]:
                found[int(line[line.index("--replica") + 1]), int(line[line.index("--rank") + 1])] = pid
        self.all_pids.update(found.values())
        return found

    def frontend(self):
        for pid in children(self.pid):
            if command_line(pid)[1:2] == ["frontend"]:
                self.all_pids.add(pid)
                return pid
        return None

    def send_signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=20):
        """Waits for its end; returns the exit code."""
        self.note_children()
        return self.process.wait(seconds)

    def left_running(self):
        """Children it ever was seen with that still run."""
        return [pid for pid in self.all_pids if is_alive(pid) and command_line(pid)[:1] == ["tandem"]]

    def stop(self):
        """SIGTERM, and everything is gone with exit code 0."""
        self.note_children()
        self.send_signal(signal.SIGTERM)
        code = self.wait()
        expect_equal(code, 0, "exit code after SIGTERM")
        wait_for(lambda: not self.left_running(), "the children's end", 5)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    # ---- requests

    def connect(self, timeout=120):
        return http.client.HTTPConnection(self.host.strip("[]"), self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None):
        """Returns (status, headers, text)."""
        with contextlib.closing(self.connect()) as connection:
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read().decode()

    def chat(self, question, **fields):
        """Asks one question, greedily unless told otherwise; returns the choice."""
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, **fields}
        status, _, text = self.request("POST", "/v1/chat/completions", body)
        expect_equal(status, 200, f"status of {question!r} ({text[:300]})")
        return json.loads(text)["choices"][0]

    def metrics(self):
        """Samples of /metrics by name, those with several label values added up."""
        status, _, text = self.request("GET", "/metrics")
        expect_equal(status, 200, "status of /metrics")
        samples = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                samples[name] = samples.get(name, 0) + float(value)
        return samples


class StreamBroken(Exception):
    """The stream ended without an end."""


def stream(server, body, on_event=None):
    """Streams a chat completion; yields nothing, returns {"tokens", "text", "reasoning", "finish", "error", "times"}.

    Each of "tokens" is (bytes, logprob) of one token, so that two equal answers are equal token by token. Raises
    StreamBroken when the stream ends without a finish_reason and an error event did not say why."""
    result = {"tokens": [], "text": "", "reasoning": "", "finish": None, "error": None, "times": [], "done": False}
    body = {"stream": True, "logprobs": True, **body}
    connection = server.connect()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise StreamBroken(f"status {reply.status}: {reply.read()[:300]}")
        for line in reply:
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if data == b"[DONE]":
                result["done"] = True
                continue
            event = json.loads(data)
            result["times"].append(time.monotonic())
            if event.get("error"):
                result["error"] = event["error"]
                continue
            for choice in event["choices"]:
                delta = choice["delta"]
                result["text"] += delta.get("content") or ""
                result["reasoning"] += delta.get("reasoning_content") or ""
                for token in (choice.get("logprobs") or {}).get("content") or []:
                    result["tokens"].append((bytes(token["bytes"]), token["logprob"]))
                result["finish"] = choice.get("finish_reason") or result["finish"]
            if on_event is not None:
                on_event(result)
    except (http.client.HTTPException, OSError) as error:
        if result["error"] is None:
            raise StreamBroken(f"{type(error).__name__}: {error} after {len(result['tokens'])} tokens") from error
    finally:
        connection.close()
    if result["error"] is None and (result["finish"] is None or not result["done"]):
        raise StreamBroken(f"a clean end without finish_reason or [DONE] after {len(result['tokens'])} tokens")
    return result


def in_threads(jobs, limit):
    """Runs callables, at most `limit` at a time; returns their results, an exception in the place of one that failed."""
    results = [None] * len(jobs)
    positions = iter(range(len(jobs)))
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                position = next(positions, None)
            if position is None:
                return
            try:
                results[position] = jobs[position]()
            except Exception as error:  # handed to the caller
                results[position] = error

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(limit, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def sums(count):
    """Questions with their answers, as the model is meant to answer them."""
    with open(os.path.join(ROOT, "tests", "data", "sums.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [(line["question"], str(line["answer"])) for line in lines[:count]]


def answer_of(text):
    """The number that an answer ends in."""
    words = text.strip().rstrip(".").split()
    return words[-1] if words else ""


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
