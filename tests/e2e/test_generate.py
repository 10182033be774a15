"""`tandem generate`: JSON lines in, JSON lines out, without a listener."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import tempfile

from support import MODEL, PROGRAM, ROOT, Server, answer_of, children, expect, expect_equal, is_alive, kill, main, run
from support import sums, test, wait_for

KEYS = ["index", "prompt_ids", "ids", "text", "reasoning", "finish_reason", "logprobs"]


def generate(lines, *arguments, timeout=120):
    """Returns (exit code, objects, standard error)."""
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    code, out, errors = run("generate", *(arguments or ("configs/cpu-x2.yaml",)), stdin=text, timeout=timeout)
    return code, [json.loads(line) for line in out.splitlines()], errors


def question(text, **fields):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


@test(seconds=120)
def many_lines_come_back_in_order_and_right():
    pairs = sums(200)
    code, answers, errors = generate([question(text) for text, _ in pairs])
    expect_equal(code, 0, f"exit code ({errors})")
    expect_equal([answer["index"] for answer in answers], list(range(200)), "indices")
    expect(all(list(answer) == KEYS for answer in answers), f"keys {list(answers[0])}")
    right = sum(answer_of(answer["text"]) == wanted for answer, (_, wanted) in zip(answers, pairs))
    expect(right >= 195, f"{right} of 200 right")
    expect(all(answer["reasoning"] and answer["finish_reason"] == "stop" for answer in answers[:10]), f"{answers[0]}")


@test
def every_form_of_a_prompt_is_taken():
    ids_of = json.loads(run("tokenize", "--model", MODEL, stdin='{"text": "12 * 34 = ?"}\n')[1])["ids"]
    code, answers, errors = generate([
        {"prompt": "12 * 34 = ?", "max_tokens": 4, "temperature": 0, "ignore_eos": True},
        {"prompt_ids": ids_of, "max_tokens": 4, "temperature": 0, "ignore_eos": True},
        question("12 * 34 = ?", logprobs=True, top_logprobs=3),
        {"prompt": "1", "max_tokens": 20, "ignore_eos": True, "temperature": 1.5, "seed": 11},
        {"prompt": "1", "max_tokens": 20, "ignore_eos": True, "temperature": 1.5, "seed": 11},
    ])
    expect_equal(code, 0, f"exit code ({errors})")
    expect_equal(answers[1]["prompt_ids"], ids_of, "prompt ids given as ids")
    expect_equal(answers[0]["prompt_ids"][-len(ids_of):], ids_of, "prompt ids of the text")
    expect_equal(answers[0]["finish_reason"], "length", "finish_reason at the limit")
    expect_equal(len(answers[0]["ids"]), 4, "ids at the limit")
    expect_equal(answer_of(answers[2]["text"]), "408", "the answer of the chat")
    logprobs = answers[2]["logprobs"]
    expect_equal([entry["id"] for entry in logprobs], answers[2]["ids"], "ids of the log-probabilities")
    for entry in logprobs:
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        expect(len(tops) == 3 and tops == sorted(tops, reverse=True), f"top_logprobs {tops}")
        expect_equal(entry["logprob"], tops[0], "the greedy token's log-probability")
    expect_equal(answers[3]["ids"], answers[4]["ids"], "two answers with one seed")
    expect_equal(len(answers[3]["ids"]), 20, "ids with ignore_eos")


@test
def the_server_and_generate_say_the_same():
    pairs = sums(10)
    _, answers, _ = generate([question(text) for text, _ in pairs])
    server = Server()
    for (text, _), answer in zip(pairs, answers):
        message = server.chat(text)["message"]
        expect_equal(message["content"], answer["text"], f"answer to {text!r}")
        expect_equal(message["reasoning_content"], answer["reasoning"], f"reasoning about {text!r}")
    server.stop()


@test
def a_bad_line_fails_alone():
    lines = [question("3 + 4 = ?"), "no json\n", {"nothing": 1}, {"prompt": 5}, {"prompt_ids": [100000]},
             question("3 + 4 = ?", temperature=99), {"prompt": "1", "max_tokens": 100000}, {"prompt": "a", "n": 2},
             {"prompt": "\ud800"}, "\n", question("3 + 4 = ?")]
    code, answers, errors = generate(lines)
    expect_equal(code, 1, f"exit code ({errors})")
    expect_equal([answer["index"] for answer in answers], list(range(10)), "indices")
    for index in (0, 9):
        expect_equal(answer_of(answers[index]["text"]), "7", f"the answer of line {index}")
    for answer, part in zip(answers[1:9], ("body", "nothing", "prompt", "prompt_ids", "temperature", "max_tokens", "n:",
                                           "body")):
        expect_equal(list(answer), ["index", "error"], f"keys of line {answer['index']}")
        expect(part in answer["error"], f"line {answer['index']}: {answer['error']}")


@test
def no_line_is_no_failure():
    code, answers, errors = generate([])
    expect_equal((code, answers), (0, []), f"exit code and output ({errors})")


@test
def a_model_that_cannot_be_loaded_ends_it():
    code, answers, errors = generate([question("1 + 1")], "--model", "/does/not/exist")
    expect_equal((code, answers), (1, []), "exit code and output")
    expect("no model directory at /does/not/exist" in errors, errors)
    code, _, errors = generate([question("1 + 1")], "--model", MODEL, "--tp", "17")
    expect_equal(code, 2, f"exit code of a wrong flag ({errors})")
    code, _, errors = generate([question("1 + 1")])
    expect_equal(code, 0, errors)


def start(lines):
    process = subprocess.Popen([PROGRAM, "generate", "configs/cpu-x2.yaml"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    for line in lines:
        process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()
    return process


@test
def answers_come_while_the_input_is_open():
    process = start([question("3 + 4 = ?")])
    first = json.loads(process.stdout.readline())
    expect_equal(answer_of(first["text"]), "7", "the first answer")
    process.stdin.write(json.dumps(question("5 + 4 = ?")) + "\n")
    process.stdin.flush()
    second = json.loads(process.stdout.readline())
    expect_equal((second["index"], answer_of(second["text"])), (1, "9"), "the second answer")
    process.stdin.close()
    expect_equal(process.wait(20), 0, "exit code")
    process.stdout.close()
    process.stderr.close()


@test(seconds=120)
def a_killed_worker_loses_no_line():
    pairs = sums(60)
    lines = [question(text) if index % 2 else question(text, temperature=1.1, seed=index)
             for index, (text, _) in enumerate(pairs)]
    _, undisturbed, _ = generate(lines)
    process = start(lines)
    first = process.stdout.readline()
    workers = children(process.pid)
    expect_equal(len(workers), 2, "workers")
    kill(workers[1])
    wait_for(lambda: len(set(children(process.pid)) - set(workers)) == 2, "the next workers")
    process.stdin.close()
    answers = [json.loads(line) for line in [first, *process.stdout]]
    errors = process.stderr.read()
    expect_equal(process.wait(20), 0, f"exit code ({errors})")
    expect("killed by signal 9" in errors, errors)
    expect_equal(answers, undisturbed, "answers with a worker killed")
    process.stdout.close()
    process.stderr.close()


@test
def ctrl_c_ends_it_with_its_workers():
    process = start([question("3 + 4 = ?")])
    process.stdout.readline()
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    expect_equal(process.wait(5), 1, "exit code: not every line was seen")
    wait_for(lambda: not any(is_alive(pid) for pid in workers), "the workers' end", 5)
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


@test
def killed_it_leaves_no_worker():
    process = start([question("3 + 4 = ?")])
    process.stdout.readline()
    workers = children(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in workers), "the workers' end", 5)
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


@test
def a_reader_that_goes_away_ends_it():
    process = start([question(text) for text, _ in sums(40)])
    process.stdout.readline()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):  # an answer that nobody reads has ended it already
        process.stdin.write(json.dumps(question("3 + 4 = ?")) + "\n")
        process.stdin.close()
    errors = process.stderr.read()
    expect_equal(process.wait(20), 1, f"exit code ({errors})")
    expect("standard output" in errors, errors)
    process.stderr.close()


@test
def a_file_that_does_not_take_the_last_lines_is_a_failure():
    most = 1 << 40  # as a full disk would; what the program shares with its workers is smaller

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with tempfile.TemporaryFile() as out:
        out.seek(most)
        done = subprocess.run([PROGRAM, "generate", "configs/cpu-x1.yaml"], input=json.dumps(question("3 + 4 = ?")) + "\n",
                              stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT, preexec_fn=limit)
    expect_equal(done.returncode, 1, f"exit code ({done.stderr})")
    expect("standard output" in done.stderr, done.stderr)


@test
def an_output_that_is_closed_is_a_failure():
    done = subprocess.run([PROGRAM, "generate", "configs/cpu-x1.yaml"], input=json.dumps(question("3 + 4 = ?")) + "\n",
                          stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT, preexec_fn=lambda: os.close(1))
    expect_equal(done.returncode, 1, f"exit code ({done.stderr})")
    expect("standard output" in done.stderr, done.stderr)


def write_shape(directory, **changes):
    """A small model that is nothing but its configuration, with more ids than the tokenizer knows."""
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 96, "intermediate_size": 200,
              "num_hidden_layers": 3, "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 1500,
              "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
              "tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": 1499, **changes}
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)


@test(seconds=120)
def a_bare_configuration_is_served_with_random_weights_the_same_in_every_world():
    prompts = [{"prompt_ids": [(7 * i + j * j) % 1499 for j in range(20 + i)], "max_tokens": 24, "temperature": 0,
                "ignore_eos": True} for i in range(4)]
    with tempfile.TemporaryDirectory() as directory:
        write_shape(directory)
        dummy = ["--model", directory, "--set", "load_format=dummy", "--set", "memory_limit_gib=0.25"]
        code, _, errors = generate(prompts, *dummy)
        expect(code == 1 and "tokenizer: there is no readable" in errors, f"{code} {errors}")
        dummy += ["--set", f"tokenizer={MODEL}"]
        code, _, errors = generate(prompts, *dummy[:2], *dummy[4:])
        expect(code == 1 and "load_format dummy" in errors, f"{code} {errors}")
        worlds = []
        for tp in ("1", "2", "4"):
            code, answers, errors = generate(prompts, *dummy, "--tp", tp, "--dtype", "float32")
            expect_equal(code, 0, f"exit code at tp {tp} ({errors})")
            worlds.append([answer["ids"] for answer in answers])
        expect_equal(worlds[1:], [worlds[0]] * 2, "ids at tp 2 and 4")
        expect(all(len(set(ids)) > 12 for ids in worlds[0]), f"ids {worlds[0]}")
        expect(any(i >= 512 for ids in worlds[0] for i in ids), "no id beyond the tokenizer's was said")
        for dtype in ("bfloat16", "float16"):
            code, answers, errors = generate(prompts, *dummy, "--tp", "2", "--dtype", dtype)
            expect_equal((code, [len(answer["ids"]) for answer in answers]), (0, [24] * 4), f"{dtype} ({errors})")
        server = Server(*dummy, "--tp", "2", config=None)
        expect("random weights" in server.errors() and MODEL in server.errors(), server.errors())
        for prompt in ([3, 1498, 1000], "12 * 34 = ?"):
            status, _, text = server.request("POST", "/v1/completions", {
                "prompt": prompt, "max_tokens": 8, "ignore_eos": True, "logprobs": 2})
            expect_equal((status, json.loads(text)["usage"]["completion_tokens"]), (200, 8), f"answer {text[:300]}")
        status, _, text = server.request("POST", "/v1/completions", {"prompt": [1500], "max_tokens": 8})
        expect_equal(status, 400, f"status for an id beyond the model's ({text[:200]})")
        server.stop()


if __name__ == "__main__":
    main()
