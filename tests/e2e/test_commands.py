"""The subcommands that start no server: help, version, config, tokenize; and chat against one."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time

from support import MODEL, PROGRAM, ROOT, Server, answer_of, expect, expect_equal, kill, main, run, test, wait_for
from tsp_proxy import Proxy

COMMANDS = ("serve", "chat", "generate", "tokenize", "config", "probe", "version")


@test
def every_command_has_help_with_examples():
    code, out, _ = run("--help")
    expect_equal(code, 0, "exit code")
    for command in COMMANDS:
        expect(f"  {command} " in out, f"{command} is not listed")
        code, text, errors = run(command, "--help")
        expect_equal((code, errors), (0, ""), f"exit code and errors of {command} --help")
        expect("usage: tandem " + command in text, text)
        expect(command == "version" or "examples:" in text, f"{command} --help shows no example")


@test
def wrong_command_lines_are_refused_with_two():
    for arguments, part in ((["srve"], "did you mean serve?"), (["serve", "--prot", "1"], "--prot: unknown flag"),
                            (["config"], "check or show"), (["config", "chek", "x"], "check or show"),
                            (["tokenize"], "--model: is missing"), (["version", "now"], "takes no arguments"),
                            (["chat", "--temperature", "hot"], "--temperature: must be a number"),
                            (["generate"], "no model"), (["probe", "all"], "takes no arguments"), (["worker"], "not by hand"), (["frontend"], "not by hand"),
                            (["serve", "a.yaml", "b.yaml"], "given already"),
                            (["serve", "--model", MODEL, "--dtype", "bf16"], "--dtype: dtype: must be one of"),
                            ([], "usage:")):
        code, out, errors = run(*arguments)
        expect_equal((code, out), (2, ""), f"{arguments}: exit code and output ({errors})")
        expect(part in errors, f"{arguments}: {errors}")


@test
def version_names_itself():
    code, out, _ = run("version")
    expect_equal(code, 0, "exit code")
    expect(out.startswith("tandem ") and out.strip()[-1].isdigit(), out)


@test
def config_show_loads_to_the_same_again():
    code, first, errors = run("config", "show", "configs/cpu-x2.yaml", "--set", "engine.queue=7", "--set",
                              "served_model_name=a \"b\": c")
    expect_equal(code, 0, f"exit code ({errors})")
    expect(f"model: {MODEL}\n" in first and "queue: 7\n" in first and "tp: 2\n" in first, first)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(first)
        file.flush()
        code, second, errors = run("config", "show", file.name)
        expect_equal((code, second), (0, first), f"exit code and output ({errors})")
        expect_equal(run("config", "check", file.name)[:2], (0, f"{file.name}: ok\n"), "config check")


@test
def config_check_names_place_and_remedy():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(f"model: {MODEL}\nhttp:\n  prot: 1\n")
        file.flush()
        code, out, errors = run("config", "check", file.name)
    expect_equal((code, out), (1, ""), "exit code and output")
    expect(f"{file.name}:3:3: http.prot: unknown key; did you mean http.port?" in errors, errors)
    code, _, errors = run("config", "check", "configs/cpu-x1.yaml", "--set", "engine.max_model_len=5000")
    expect(code == 1 and "is more than the model's 4096 positions" in errors, f"{code} {errors}")


# ---- tokenize


def tokenize(lines, model=MODEL):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    code, out, errors = run("tokenize", "--model", model, stdin=text)
    return code, [json.loads(line) for line in out.splitlines()], errors


@test
def texts_survive_the_way_to_ids_and_back():
    texts = ["12 * 34 = ?", "", " two  spaces ", "héllo — 世界 🙂", "line\nbreak\ttab", "<think>\n1</think>"]
    code, encoded, errors = tokenize([{"text": text} for text in texts])
    expect_equal(code, 0, f"exit code ({errors})")
    code, decoded, errors = tokenize([{"ids": line["ids"]} for line in encoded])
    expect_equal([line["text"] for line in decoded], texts, "texts after both ways")
    with open(os.path.join(MODEL, "tokenizer.json")) as file:
        added = {token["content"]: token["id"] for token in json.load(file)["added_tokens"]}
    code, found, _ = tokenize([{"text": text} for text in added])
    expect_equal([line["ids"] for line in found], [[number] for number in added.values()], "ids of added tokens")


@test
def chats_are_rendered_by_the_template():
    messages = [{"role": "user", "content": "3 + 4 = ?"}]
    lines = [{"messages": messages}, {"messages": messages, "add_generation_prompt": True},
             {"messages": [*messages, {"role": "assistant", "content": "3 + 4"}], "continue_final_message": True}]
    code, encoded, errors = tokenize(lines)
    expect_equal(code, 0, f"exit code ({errors})")
    _, decoded, _ = tokenize([{"ids": line["ids"]} for line in encoded])
    plain, prompt, continued = (line["text"] for line in decoded)
    expect(plain.endswith("3 + 4 = ?"), plain)
    expect(prompt.startswith(plain) and prompt.endswith("<think>\n"), prompt)
    expect(continued.endswith("3 + 4"), continued)


@test
def a_bad_line_fails_alone():
    lines = [{"text": "1"}, "{\n", {"txt": "1"}, {"text": 1}, {"ids": [1, -1]}, {"ids": [10**6]}, {"ids": "1"},
             {"messages": []}, {"messages": [{"role": "user"}], "tols": []},
             {"messages": [{"role": "user", "content": "1"}], "add_generation_prompt": True,
              "continue_final_message": True}, {"text": "1"}]
    code, answers, errors = tokenize(lines)
    expect_equal(code, 1, f"exit code ({errors})")
    expect_equal(len(answers), len(lines), "lines")
    expect_equal(answers[0], answers[-1], "the good lines")
    parts = ("line", "txt", "text", "ids[1]", "ids[0]", "ids", "messages", "tols", "continue_final_message")
    for index, part in enumerate(parts, 1):
        expect_equal(answers[index]["index"], index, "index")
        expect(part in answers[index]["error"], f"line {index}: {answers[index]['error']}")


@test
def only_tokenizer_files_are_needed():
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            os.symlink(os.path.join(MODEL, name), os.path.join(folder, name))
        expect_equal(tokenize([{"text": "12"}], folder)[:2], tokenize([{"text": "12"}])[:2], "ids")


# ---- chat


@test
def one_question_and_out():
    server = Server()
    code, out, errors = run("chat", server.url, "--once", "What is 407 - 1295?", "--temperature", "0")
    expect_equal((code, errors), (0, ""), f"exit code and errors ({out})")
    expect_equal(answer_of(out), "-888", "the answer")
    expect("\033" not in out, "escape sequences without a terminal")
    thinking = out.count("\n")
    code, out, _ = run("chat", server.url + "/v1/", "--no-thinking", "--temperature", "0", stdin="12 * 34 = ?\n")
    expect_equal((code, answer_of(out)), (0, "408"), "exit code and answer of a question on standard input")
    expect(out.count("\n") < thinking, f"the reasoning is shown: {out}")
    code, _, errors = run("chat", server.url, "--once", "1 + 1", "--model", "nope")
    expect(code == 1 and "nope" in errors, f"an unknown model: {code} {errors}")
    code, _, errors = run("chat", server.url, "--once", "1 + 1", "--max-tokens", "3")
    expect(code == 0 and "token limit" in errors, f"a cut answer: {code} {errors}")
    code, _, errors = run("chat", server.url, stdin="")
    expect(code == 1 and "no question" in errors, f"nothing on standard input: {code} {errors}")
    port = server.port
    server.stop()
    code, _, errors = run("chat", f"127.0.0.1:{port}", "--once", "1 + 1")
    expect(code == 1 and "Connection refused" in errors, f"no server: {code} {errors}")


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execv(PROGRAM, [PROGRAM, *arguments])
        self.text = ""

    def read(self):
        while select.select([self.fd], [], [], 0)[0]:
            try:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                return

    def wait_text(self, part, seconds=30):
        def has():
            self.read()
            return part in self.text
        wait_for(has, f"{part!r} in {self.text!r}", seconds)

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait(self):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.read()
            pid, state = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(state)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"no end; the terminal shows {self.text!r}")


def unread_bytes(pipe):
    return struct.unpack("i", fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)))[0]


def converse(server, url):
    prompts = server.metrics()["vllm:prompt_tokens_total"]
    terminal = Terminal("chat", url, "--temperature", "0")
    terminal.wait_text("> ")
    expect("tandem-r1-tiny;" in terminal.text, terminal.text)
    terminal.type("What is 407 - 1295?\n")
    terminal.wait_text("-888\r\n> ")
    expect("\033[2m" in terminal.text and "\033[0m" in terminal.text, "the reasoning is not dimmed")
    before = len(terminal.text)
    terminal.type("12 * 34 = ?\n")
    wait_for(lambda: terminal.read() or "408\r\n> " in terminal.text[before:], "the second answer")
    expect(server.metrics()["vllm:prompt_tokens_total"] - prompts > 40, "the history was not sent")
    terminal.type("\x04")
    expect_equal(terminal.wait(), 0, "exit code after Ctrl-D")


@test
def a_conversation_on_a_terminal():
    server = Server(config="configs/cpu-x1.yaml")
    converse(server, server.url)
    converse(server, f"tcp://{server.host}:{server.tcp_port}")
    wait_for(lambda: server.metrics()["tandem_tcp_requests"] == 0, "the server to forget both questions")
    server.stop()


def interrupt(server, url):
    terminal = Terminal("chat", url, "--temperature", "0")
    terminal.wait_text("> ")
    # An answer that cannot end: at the prompt the key would mean something else.
    for worker in server.workers().values():
        os.kill(worker, signal.SIGSTOP)
    terminal.type("tell me everything\n")
    terminal.wait_text("everything\r\n")
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 1, "the request at the engine")
    terminal.type("\x03")
    terminal.wait_text("cancelled\r\n> ")
    for worker in server.workers().values():
        os.kill(worker, signal.SIGCONT)
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0,
             "the request's end at the server")
    terminal.type("3 + 4 = ?\n")
    terminal.wait_text("7\r\n> ")
    terminal.type("\x03")
    expect_equal(terminal.wait(), 0, "exit code after Ctrl-C at the prompt")


@test
def half_a_question_is_not_asked():
    server = Server(config="configs/cpu-x1.yaml")
    process = subprocess.Popen([PROGRAM, "chat", server.url, "--no-thinking"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, cwd=ROOT)
    process.stdin.write("What is 12")
    process.stdin.flush()
    wait_for(lambda: unread_bytes(process.stdin) == 0, "the half to be read")
    while process.poll() is None:  # one that comes between two reads is lost
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    expect_equal((process.returncode, process.stdout.read()), (1, ""), "exit code and output")
    expect("standard input" in process.stderr.read(), "the cause is not said")
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    server.stop()


@test
def an_answer_that_cannot_be_written_is_a_failure():
    server = Server(config="configs/cpu-x1.yaml")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PROGRAM, "chat", f"tcp://{server.host}:{server.tcp_port}", "--once", "3 + 4 = ?"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=30, cwd=ROOT)
    expect_equal(done.returncode, 1, "exit code")
    expect("standard output" in done.stderr, done.stderr)
    server.stop()


@test(seconds=120)
def ctrl_c_ends_the_answer_and_then_the_program():
    server = Server(config="configs/cpu-x1.yaml")
    interrupt(server, server.url)
    interrupt(server, f"tcp://{server.host}:{server.tcp_port}")
    wait_for(lambda: server.metrics()["tandem_tcp_requests"] == 0, "the server to forget the cancelled answer")
    server.stop()


@test(seconds=120)
def a_chat_survives_cut_connections_and_a_killed_frontend():
    server = Server(config="configs/cpu-x1.yaml")
    tcp = (server.host, server.tcp_port)
    question = ("--temperature", "0.9", "--seed", "3", "--max-tokens", "600", "--once", "Tell me of 12 * 34.")
    code, wanted, errors = run("chat", "tcp://%s:%d" % tcp, *question)
    expect_equal((code, errors), (0, ""), "exit code and errors")
    expect_equal(run("chat", server.url, *question)[:2], (0, wanted), "the answer over HTTP")
    proxy = Proxy(tcp, 900, 16)  # the first connection lives for 404 bytes
    expect_equal(run("chat", "tcp://%s:%d" % proxy.address, *question), (0, wanted, ""), "the answer over cuts")
    expect(proxy.cuts > 0, "no cut")
    proxy.stop()
    terminal = Terminal("chat", "tcp://%s:%d" % tcp, "--temperature", "0")
    terminal.wait_text("> ")
    for worker in server.workers().values():
        os.kill(worker, signal.SIGSTOP)
    terminal.type("What is 407 - 1295?\n")
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 1, "the request at the engine")
    kill(server.frontend())
    for worker in server.workers().values():
        os.kill(worker, signal.SIGCONT)
    terminal.wait_text("-888\r\n> ")
    expect("tandem chat:" not in terminal.text, terminal.text)
    terminal.type("\x04")
    expect_equal(terminal.wait(), 0, "exit code")
    server.stop()


@test
def a_chat_proves_its_right_and_names_what_is_wrong():
    with tempfile.NamedTemporaryFile("w") as keys, tempfile.NamedTemporaryFile("w") as wrong:
        for file, key in ((keys, "right"), (wrong, "other")):
            file.write(f"{key}\n")
            file.flush()
        server = Server("--set", f"api_key_file={keys.name}", config="configs/cpu-x1.yaml")
        url = f"tcp://{server.host}:{server.tcp_port}"
        question = ("--temperature", "0", "--once", "3 + 4 = ?")
        code, out, errors = run("chat", url, "--api-key-file", keys.name, *question)
        expect((code, errors) == (0, "") and out.endswith("7\n"), f"{code} {out} {errors}")
        code, out, errors = run("chat", url, "--api-key-file", wrong.name, *question)
        expect((code, out) == (1, "") and "--api-key-file" in errors, f"{code} {out} {errors}")
        code, out, errors = run("chat", url, "--api-key-file", keys.name, "--model", "another", *question)
        expect((code, out) == (1, "") and "2002" in errors and "another" in errors, f"{code} {out} {errors}")
        code, out, errors = run("chat", url, "--api-key-file", keys.name, stdin="1\0" + "2")
        expect((code, out) == (1, "") and "NUL" in errors, f"{code} {out} {errors}")
        server.stop()
    code, out, errors = run("chat", "tcp://nowhere", *question)
    expect((code, out) == (1, "") and "tcp://HOST:PORT" in errors, f"{code} {out} {errors}")


@test
def a_question_with_no_server_behind_it_ends():
    for url in ("http://127.0.0.1:1", "tcp://127.0.0.1:1"):
        process = subprocess.run([PROGRAM, "chat", url, "--once", "1"], capture_output=True, text=True, timeout=20)
        expect_equal(process.returncode, 1, f"exit code of {url}")


if __name__ == "__main__":
    main()
