"""Trains tandem-r1-tiny and writes the model directory.

    python3 train.py --out MODEL_DIR [--sums SUMS.jsonl] [--steps N] [--budget SECONDS]

The tokenizer in MODEL_DIR is used as it is; where there is none, it is built. The data is a pure function of
the seed and the step, whatever the number of data processes. A short smoke run comes first. The schedule ends
after the steps asked for or when the budget is used, whichever is sooner.
"""
import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import time

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import dialogue
import evaluate
import model as qwen2
import problems
import vocabulary

STATE = {}


def start_worker(directory, seed, tokens, lengths):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    STATE.update(tokenizer=tokenizer, seed=seed, tokens=tokens, lengths=lengths,
                 pad=tokenizer.token_to_id(dialogue.EOS))


def make_step(step):
    """One step in four has long rows, so that every position of the context is trained."""
    length = STATE["lengths"][step % 4 == 3]
    ids, targets = dialogue.rows(STATE["tokenizer"], f"{STATE['seed']}/{step}", max(1, STATE["tokens"] // length),
                                 length, STATE["pad"])
    return torch.tensor(ids, dtype=torch.int16), torch.tensor(targets, dtype=torch.int16)


def batches(pool, first, last, ahead):
    """Batches of the steps [first, last) in order, at most `ahead` of them made in advance."""
    waiting = []
    for step in range(first, last + ahead):
        if step < last:
            waiting.append(pool.apply_async(make_step, (step,)))
        if step >= first + ahead or step >= last:
            if waiting:
                yield waiting.pop(0).get()


def optimizer_for(net, args):
    decayed = [w for w in net.parameters() if w.dim() == 2]
    others = [w for w in net.parameters() if w.dim() != 2]
    groups = [{"params": decayed, "weight_decay": args.decay}, {"params": others, "weight_decay": 0.0}]
    fused = next(net.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), eps=1e-9, fused=fused)


def rate_at(args, step, done):
    """Warm-up by steps, then a cosine over the share of the run that is done."""
    if step < args.warmup:
        return args.rate * (step + 1) / args.warmup
    return args.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train_steps(net, forward, optimizer, source, device, rate, on_step):
    """One step per batch of the source; on_step(step, loss) returns True to stop."""
    for step, (ids, targets) in enumerate(source):
        ids, targets = ids.to(device, torch.long), targets.to(device, torch.long)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = forward(ids, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if on_step(step, loss):
            return


def write_model(net, directory, tokenizer):
    """config.json and the weights rounded to bfloat16."""
    config = dict(qwen2.SHAPE, torch_dtype="bfloat16", bos_token_id=tokenizer.token_to_id(dialogue.BOS),
                  eos_token_id=tokenizer.token_to_id(dialogue.EOS))
    vocabulary.write_json(directory, "config.json", config)
    state = {name: w.detach().to(torch.bfloat16).cpu().contiguous() for name, w in net.state_dict().items()}
    save_file(state, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})


def judge(directory, rows, device, before=None):
    tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    return evaluate.accuracy(evaluate.load(directory, device), tokenizer, rows, before)


def contexts(count, seed):
    """Beginnings of dialogues (system texts, earlier turns) to ask the held-out questions after."""
    rng = random.Random(seed)
    out = []
    while len(out) < count:
        prompt, _ = dialogue.dialogue(rng)
        start = prompt.rpartition(dialogue.USER)[0]
        if start != dialogue.BOS and len(start) < 2500:
            out.append(start)
    return out


def long_contexts(count, seed, tokenizer, tokens):
    """System texts of a given length in tokens."""
    rng = random.Random(seed)
    texts = (dialogue.noise(rng, tokens) for _ in range(count))
    return [dialogue.BOS + tokenizer.decode(tokenizer.encode(t, add_special_tokens=False).ids[:tokens]) for t in texts]


def smoke(args, pool, device):
    """Some steps on a throw-away model: shows that all of it works, and how fast."""
    torch.manual_seed(args.seed)
    net = qwen2.Qwen2(qwen2.SHAPE).to(device)
    forward = torch.compile(net, dynamic=False) if args.compile else net
    times = []

    def note(step, loss):
        value = loss.item()
        times.append(time.monotonic())
        if step % 20 == 0:
            print(f"smoke {step} loss {value:.4f}", flush=True)
        return len(times) > 10 and times[-1] - times[10] > args.smoke
    train_steps(net, forward, optimizer_for(net, args), batches(pool, 0, 200, args.workers * 2), device,
                lambda step: rate_at(args, step, 0.0), note)
    seconds = (times[-1] - times[10]) / (len(times) - 11)
    print(f"a step takes {seconds * 1e3:.1f} ms: {args.tokens / seconds / 1e6:.2f} M tokens/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--sums", help="held-out problems; made from the seed when left out")
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--budget", type=float, default=3600, help="seconds for everything")
    parser.add_argument("--reserve", type=float, default=45, help="seconds kept for checks and the last evaluation")
    parser.add_argument("--smoke", type=float, default=10, help="seconds of timing before training")
    parser.add_argument("--tokens", type=int, default=98304, help="tokens a step")
    parser.add_argument("--lengths", type=int, nargs=2, default=(1536, 4096), help="tokens a row, short and long")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--every", type=int, default=2000, help="steps between evaluations")
    parser.add_argument("--check", type=int, default=500, help="problems per evaluation on the way")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")

    os.makedirs(args.out, exist_ok=True)
    if not os.path.exists(os.path.join(args.out, "tokenizer.json")):
        vocabulary.save(vocabulary.build(args.seed), args.out, qwen2.SHAPE["max_position_embeddings"])
    tokenizer = Tokenizer.from_file(os.path.join(args.out, "tokenizer.json"))
    if args.sums:
        with open(args.sums, encoding="utf-8") as file:
            sums = [json.loads(line) for line in file]
    else:
        sums = problems.held_out_set(2000, args.seed)
    trial = args.out.rstrip("/") + ".trial"
    shutil.copytree(args.out, trial, dirs_exist_ok=True)

    context = multiprocessing.get_context("spawn")
    pool = context.Pool(args.workers, start_worker, (args.out, args.seed, args.tokens, args.lengths))
    smoke(args, pool, device)
    torch.manual_seed(args.seed)
    net = qwen2.Qwen2(qwen2.SHAPE).to(device)
    forward = torch.compile(net, dynamic=False) if args.compile else net
    print(f"{sum(w.numel() for w in net.parameters())} weights", flush=True)
    best = {"share": -1.0, "step": 0}
    marks = {"time": time.monotonic(), "step": 0}
    start, end = time.monotonic(), began + args.budget - args.reserve

    def done(step):
        return max((step + 1) / args.steps, (time.monotonic() - start) / max(1.0, end - start))

    def check(step, rows):
        write_model(net, trial, tokenizer)
        share, wrong = judge(trial, rows, device)
        print(f"step {step} accuracy {share:.4f}" + "".join(f"\n  {w}" for w in wrong[:3]), flush=True)
        if share >= best["share"] or len(rows) == len(sums):
            best.update(share=share, step=step)
            for name in ("model.safetensors", "config.json"):
                shutil.copyfile(os.path.join(trial, name), os.path.join(args.out, name))

    def on_step(step, loss):
        if step % 100 == 0:
            now = time.monotonic()
            value = loss.item()
            speed = (step - marks["step"]) / max(1e-9, now - marks["time"])
            print(f"step {step} loss {value:.5f} {speed:.1f} steps/s {now - began:.0f} s", flush=True)
            marks.update(time=now, step=step)
        if step and step % args.every == 0:
            check(step, sums[:args.check])
        marks["last"] = step
        return done(step) >= 1.0
    first = 1_000_000  # apart from the steps of the smoke run
    train_steps(net, forward, optimizer_for(net, args), batches(pool, first, first + args.steps, args.workers * 2),
                device, lambda step: rate_at(args, step, done(step)), on_step)
    pool.terminate()
    check(marks["last"] + 1, sums)
    before = contexts(len(sums) // 2, args.seed)
    share, wrong = judge(args.out, sums[:len(before)], device, before)
    print(f"after system texts and earlier turns: accuracy {share:.4f}" + "".join(f"\n  {w}" for w in wrong[:3]))
    for length in (1000, 2000, 3000, 3800) if len(sums) >= 500 else ():
        share, _ = judge(args.out, sums[:200], device, long_contexts(200, args.seed, tokenizer, length))
        print(f"after {length} tokens of text: accuracy {share:.4f}", flush=True)
    shutil.rmtree(trial)
    print(f"done in {time.monotonic() - began:.0f} s, best at step {best['step']}: {best['share']:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
