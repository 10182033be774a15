#!/usr/bin/env python3
"""Writes what transformers computes for a model directory, as a small JSON file to compare with.

    python3 make_reference.py MODEL_DIR OUT.json [--name NAME] [--steps N]
    python3 make_reference.py --random CLASS OUT.json [--seed N] [--dtype float32]

The second form makes the random model of make_random_model.py first and records the recipe and the weights' hash.
The prompts are fixed: texts for the models named in TEXTS, else ids from a small sequence. For each of them, in float32
with eager attention:

    ids      the prompt
    greedy   the ids that greedy decoding gives, end tokens not heeded
    gaps     at each of these steps the distance of the two best logits: below some 1e-4 an id may rightly differ
    logits   at chosen positions, `at` counting from 0 in prompt + greedy: the logits for the token after that one, as
             base64 of little-endian float32; for vocabularies above 4,096 only the best 64 (ids, values) and the
             logsumexp of all
    bf16     transformers' own bfloat16 run over the same ids against its float32 one: largest difference of logits,
             mean and largest Kullback-Leibler divergence KL(float32 || bfloat16), at these positions and at all
             generated ones, and the share of positions where the best id is the same; with --half-attention sdpa its scores
             stay in float32

Needs torch, transformers and tokenizers.
"""
import argparse
import base64
import hashlib
import json
import os
import sys
import tempfile

import tokenizers
import torch
import transformers

TINY_BOS, TINY_EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
TINY_USER, TINY_BOT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
TEXTS = {
    "tandem-r1-tiny": (
        f"{TINY_BOS}{TINY_USER}What is 407 - 1295?{TINY_BOT}<think>\n",
        f"{TINY_BOS}You are a helpful assistant.{TINY_USER}12 * 34 = ?{TINY_BOT}12 * 34 = 408{TINY_EOS}"
        f"{TINY_USER}Add 5 and 7{TINY_BOT}<think>\n",
        TINY_BOS + "You are a careful calculator. Think step by step. Answer with a number. " * 12
        + f"{TINY_USER}What is 87 times 96?{TINY_BOT}<think>\n",
    ),
    "smollm2": (
        SMOL + "Why is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
        "def fibonacci(n):\n    \"\"\"Return the first n numbers.\"\"\"\n",
        SMOL + "Here is a list of cities: " + ", ".join(
            f"{name} ({count} districts)" for name, count in (
                ("Paris", 20), ("Vienna", 23), ("Rome", 15), ("Berlin", 12), ("Madrid", 21), ("Lisbon", 24), ("Athens", 7),
                ("Prague", 22), ("Warsaw", 18), ("Budapest", 23), ("Dublin", 11), ("Oslo", 15), ("Helsinki", 8)))
        + ". Which of these cities have more than twenty districts, and in which countries do they lie? Answer in full "
        "sentences and tell me one thing that each of them is known for.<|im_end|>\n<|im_start|>assistant\n",
    ),
}
FULL = 4096  # vocabularies up to this size are kept whole
BEST = 64
LENGTHS = (5, 37, 150)  # prompt lengths: within a KV block, over some, over many
WITH_LOGITS = (0, 2)  # prompts of which logits are kept
KEPT_STEPS = (0, 1, 4, 8)  # ... after the prompt and after so many generated ids


def fixed_prompts(vocab):
    """Prompts of plain ids from a small congruential sequence, low ids (specials) left out."""
    state, prompts = 12345, []
    low, high = min(20, vocab // 8), min(vocab, 490)
    for length in LENGTHS:
        ids = []
        for _ in range(length):
            state = (state * 1103515245 + 12345) % 2 ** 31
            ids.append(low + (state >> 8) % (high - low))
        prompts.append(ids)
    return prompts


def text_prompts(directory, texts):
    """The texts as ids, special tokens in them recognised and none added."""
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def greedy(model, prompt, steps):
    """Greedy ids and gaps, with the KV cache."""
    ids, gaps, past = [], [], None
    feed = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(steps):
            out = model(input_ids=feed, past_key_values=past, use_cache=True)
            past = out.past_key_values
            top = torch.topk(out.logits[0, -1], 2)
            ids.append(int(top.indices[0]))
            gaps.append(float(top.values[0] - top.values[1]))
            feed = torch.tensor([[ids[-1]]])
    return ids, gaps


def all_logits(model, ids, first):
    """Logits after the tokens from index `first` on, as float32."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, first:].float()


def difference(ours, theirs):
    log_p, log_q = torch.log_softmax(ours.double(), -1), torch.log_softmax(theirs.double(), -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    return {"max_abs": float(f"{(ours - theirs).abs().max():.4g}"), "kl_mean": float(f"{kl.mean():.4g}"),
            "kl_max": float(f"{kl.max():.4g}"), "same_best": float(f"{same:.4f}")}


def kept(row, at):
    """One position's logits in the form described above."""
    if row.numel() <= FULL:
        return {"at": at, "f32": base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()}
    top = torch.topk(row, BEST)
    return {"at": at, "ids": top.indices.tolist(), "values": [float(f"{v:.7g}") for v in top.values.tolist()],
            "logsumexp": float(f"{torch.logsumexp(row.double(), 0):.9g}")}


def load(directory, dtype, attention):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation=attention, local_files_only=True).eval()


def weights_hash(directory):
    digest = hashlib.sha256()
    for name in sorted(os.listdir(directory)):
        if name.endswith(".safetensors"):
            with open(os.path.join(directory, name), "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def reference(directory, name, steps, half_attention):
    model, half = load(directory, torch.float32, "eager"), load(directory, torch.bfloat16, half_attention)
    prompts = text_prompts(directory, TEXTS[name]) if name in TEXTS else fixed_prompts(model.config.vocab_size)
    out = {"model": name, "weights_sha256": weights_hash(directory), "vocab_size": model.config.vocab_size,
           "made_with": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}", "prompts": []}
    for number, prompt in enumerate(prompts):
        room = model.config.max_position_embeddings - len(prompt)
        ids, gaps = greedy(model, prompt, min(steps, room))
        ours = all_logits(model, prompt + ids[:-1], len(prompt) - 1)
        theirs = all_logits(half, prompt + ids[:-1], len(prompt) - 1)
        if [int(i) for i in ours.argmax(-1)] != ids:
            print(f"{name}, prompt {number}: cached and whole runs differ in an id", file=sys.stderr)
        positions = [s for s in KEPT_STEPS if s < len(ids)] if number in WITH_LOGITS else []
        entry = {"ids": prompt, "greedy": ids, "gaps": [float(f"{g:.3g}") for g in gaps],
                 "logits": [kept(ours[s], len(prompt) - 1 + s) for s in positions],
                 "bf16": {"all": difference(ours, theirs)}}
        if positions:
            entry["bf16"]["kept"] = difference(ours[positions], theirs[positions])
        out["prompts"].append(entry)
        print(f"{name}, prompt {number}: {len(prompt)} ids, {len(set(ids))} different ids of {len(ids)}, least gap {min(gaps):.2g}, "
              f"{sum(g < 1e-3 for g in gaps)} below 1e-3, bf16 {entry['bf16']['all']}")
    return out


def write(path, value):
    """One line for each prompt, so that a change shows where it is."""
    prompts = value.pop("prompts")
    with open(path, "w", encoding="utf-8") as out:
        head = json.dumps(value, separators=(",", ":"))
        lines = ",\n".join(json.dumps(p, separators=(",", ":")) for p in prompts)
        out.write(f'{head[:-1]},"prompts":[\n{lines}\n]}}\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="[MODEL_DIR] OUT.json")
    parser.add_argument("--random", metavar="CLASS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", help="default: the directory's last component, or CLASS")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--half-attention", default="eager", choices=("eager", "sdpa"))
    args = parser.parse_args()
    if len(args.paths) != (1 if args.random else 2):
        parser.error("MODEL_DIR and OUT.json, or --random CLASS and OUT.json")
    transformers.logging.set_verbosity_error()
    if args.random:
        import make_random_model
        with tempfile.TemporaryDirectory() as directory:
            make_random_model.build(args.random, directory, args.seed, args.dtype)
            made = reference(directory, args.name or args.random, args.steps, args.half_attention)
        made = {"recipe": {"class": args.random, "seed": args.seed, "dtype": args.dtype}, **made}
    else:
        directory = args.paths[0].rstrip("/")
        made = reference(directory, args.name or os.path.basename(directory), args.steps, args.half_attention)
    write(args.paths[-1], made)


if __name__ == "__main__":
    main()
