"""The benchmarks of ops, whole models and the server run on the cpu, and what they print adds up. No figure of time is
judged here."""

import json
import os
import subprocess

from support import MODEL, PROGRAM, ROOT, expect, expect_equal, main, test

FOLDER = os.path.join(os.path.dirname(PROGRAM), "benchmarks")
LAYERS = 4  # of the embedded model


def rows_of(program, *arguments):
    """The JSON lines that a benchmark prints, by what they are about."""
    done = subprocess.run([os.path.join(FOLDER, program), "--json", *arguments], capture_output=True, text=True,
                          timeout=280, cwd=ROOT)
    expect_equal(done.returncode, 0, f"exit code ({done.stderr})")
    rows = {}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        rows.setdefault(row["row"], []).append(row)
    return rows


def expect_layers(kinds):
    """A step's products are each in every layer once, and read their weights."""
    config = json.load(open(os.path.join(MODEL, "config.json"), encoding="utf-8"))
    expect_equal(config["num_hidden_layers"], LAYERS, "layers")
    for name in ("qkv", "o", "gate_up", "down", "attention"):
        expect_equal(kinds[name]["count"], LAYERS, name)
    expect(kinds["gate_up"]["floor_us"] > kinds["down"]["floor_us"] > kinds["o"]["floor_us"] > 0, f"floors {kinds}")


@test(seconds=300)
def decode_tells_a_step_apart():
    rows = rows_of("bench_decode", "--model", MODEL, "--backend", "cpu", "--tp", "1,2", "--batch", "3", "--context",
                   "40", "--steps", "2", "--workers")
    expect(rows["ceiling"][0]["read_gb_per_s"] > 0, f"{rows['ceiling']}")
    expect_equal([(row["tp"], row["batch"]) for row in rows["step"]], [(1, 3), (2, 3)], "shapes")
    expect(all(row["worker_ms"] > 0 and row["graph_ms"] > 0 for row in rows["step"]), f"{rows['step']}")
    for tp in (1, 2):
        kinds = {row["op"]: row for row in rows["op"] if row["tp"] == tp}
        expect_layers(kinds)
        expect_equal("all_reduce" in kinds, tp == 2, "collectives")


@test(seconds=300)
def prefill_goes_in_chunks():
    rows = rows_of("bench_prefill", "--model", MODEL, "--backend", "cpu", "--random-weights", "--prompt", "40",
                   "--chunk", "16", "--steps", "2")
    expect_equal([(row["prompt"], row["chunk"]) for row in rows["prompt"]], [(40, 16)], "prompts")
    kinds = {row["op"]: row for row in rows["op"]}
    expect_layers(kinds)
    expect_equal((kinds["qkv"]["q_len"], kinds["qkv"]["context"]), (8, 32), "last chunk")


@test(seconds=300)
def ops_can_be_left_out():
    model = ("--model", MODEL, "--backend", "cpu", "--no-ops")
    decode = rows_of("bench_decode", *model, "--batch", "1", "--context", "8", "--steps", "2")
    prefill = rows_of("bench_prefill", *model, "--prompt", "40", "--steps", "2")
    expect_equal((set(decode), set(prefill)), ({"ceiling", "step"}, {"ceiling", "prompt"}), "rows")
    step, = decode["step"]
    expect(step["floor_ms"] > 0 and step["tokens_per_s"] > 0 and step["graph_ms"] is None, f"{step}")


@test(seconds=300)
def ops_know_the_shapes():
    rows = rows_of("bench_ops", "--model", "tandem-r1-tiny", "--tp", "1,2", "--only", "rmsnorm")
    expect_equal({(row["tp"], row["shape"]) for row in rows["op"]},
                 {(tp, f"T={tokens} H=256") for tp in (1, 2) for tokens in (1, 16, 64, 512)}, "shapes")


@test(seconds=300)
def serve_counts_every_token():
    rows = rows_of("bench_serve", "--requests", "6", "--concurrency", "3", "--prompt", "20", "--output", "8",
                   "--", PROGRAM, "serve", "configs/cpu-x1.yaml")
    row, = rows["serve"]
    expect_equal((row["failed"], row["tokens"]), (0, 6 * 8), f"{row}")


@test(seconds=300)
def streams_cost_beside_events():
    rows = rows_of("bench_stream", "--streams", "3", "--tokens", "300", "--rounds", "1")["stream"]
    expect_equal([(row["steps"], row["over"], row["sockets"]) for row in rows],
                 [(steps, over, 3 if over == "sse" else 1) for steps in ("at once", "paced") for over in ("sse", "tsp")],
                 "measurements")
    for row in rows:
        costs = [row[name] for name in ("engine_s", "loop_s", "client_s", "bare_send_s", "bare_read_s")]
        expect(all(cost > 0 for cost in costs), f"{row}")
    bytes_of = {(row["steps"], row["over"]): row["token_bytes"] for row in rows}
    expect(bytes_of["paced", "tsp"] < bytes_of["paced", "sse"], f"{bytes_of}")


main()
