"""A running `tandem serve` for tests: start it, ask it, look at its processes, end it. Standard library only."""
import http.client
import json
import os
import pathlib
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = os.environ.get("TANDEM", str(ROOT / "build/release/tandem"))
MODEL = "tandem-r1-tiny"


class Server:
    def __init__(self, *arguments, config="configs/cpu-x2.yaml"):
        self.process = subprocess.Popen(
            [PROGRAM, "serve", str(ROOT / config), "--set", "http.port=0", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("ready http="):
            raise RuntimeError(f"no ready line: {line!r}\n{self.process.stderr.read()}")
        self.host, port = line.strip().removeprefix("ready http=").rsplit(":", 1)
        self.port = int(port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()
        self.process.stderr.close()

    def request(self, method, path, body=None, timeout=60):
        """Returns (status, body text)."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ask(self, question, **fields):
        status, text = self.request("POST", "/v1/chat/completions", dict(
            {"model": MODEL, "messages": [{"role": "user", "content": question}]}, **fields))
        if status != 200:
            raise RuntimeError(f"{status}: {text}")
        return json.loads(text)

    def stream(self, question, on_event=None, timeout=60, **fields):
        """Streams an answer; returns (text of reasoning and answer, finish reason). Fails on anything but a proper end."""
        body = dict({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": question}]}, **fields)
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        text, finish, done = "", None, False
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.read().decode()}")
            for raw in answer:
                line = raw.decode().strip()
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    for choice in event["choices"]:
                        delta = choice["delta"]
                        text += (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                        finish = choice["finish_reason"] or finish
                    if on_event is not None:
                        on_event(event)
        finally:
            connection.close()
        if not done or finish is None:
            raise RuntimeError("the stream broke off")
        return text, finish

    def children(self, word=""):
        """Process ids below the supervisor whose command line contains `word`."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, ValueError, IndexError):
                continue
            if parent == self.process.pid and word in command:
                found.append(int(entry.name))
        return sorted(found)


def wait_until(condition, seconds=20):
    """True as soon as the condition holds; False when it does not within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def gone(pids):
    """True when none of these processes is left (a zombie counts as gone)."""
    def alive(pid):
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False
    return not any(alive(pid) for pid in pids)


def run_tests(scope):
    """Runs every function named test_*; prints the summary line; returns the exit code."""
    passed = failed = 0
    for name, function in list(scope.items()):
        if not name.startswith("test_"):
            continue
        start = time.monotonic()
        try:
            function()
            passed += 1
            print(f"ok   {name} ({(time.monotonic() - start) * 1000:.0f} ms)")
        except Exception as error:  # a test fails by any exception; its text is the report
            failed += 1
            print(f"FAIL {name}: {type(error).__name__}: {error}")
    print(f"{passed} passed, {failed} failed")
    return failed > 0
