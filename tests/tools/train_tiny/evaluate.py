"""Accuracy of a Hugging Face directory on the sums, by greedy decoding in transformers, float32.

    python3 evaluate.py MODEL_DIR SUMS.jsonl [--limit N]
"""
import argparse
import json
import os
import re

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import dialogue

NUMBER = re.compile(r"-?\d+$")


def load(directory, device):
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    return model.to(device).eval()


def generate(model, tokenizer, prompts, limit=240, batch=1000):
    """Greedy replies (ids up to and with the end token), shortest prompts first, padded on the left."""
    device = next(model.parameters()).device
    end = tokenizer.token_to_id(dialogue.EOS)
    ids = [e.ids for e in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    replies = [None] * len(ids)
    for start in range(0, len(order), batch):
        part = order[start:start + batch]
        width = max(len(ids[i]) for i in part)
        padded = torch.tensor([[end] * (width - len(ids[i])) + ids[i] for i in part], device=device)
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in part], device=device)
        with torch.no_grad():
            out = model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=limit, do_sample=False,
                                 eos_token_id=end, pad_token_id=end)
        for i, row in zip(part, out[:, width:].tolist()):
            replies[i] = row[:row.index(end) + 1] if end in row else row
    return replies


def last_number(text):
    """The number the answer ends in, or None. The thinking does not count."""
    found = NUMBER.search(text.rpartition(dialogue.END_THINK)[2].strip()) if dialogue.END_THINK in text else None
    return int(found.group()) if found else None


def chat_prompt(question, before=dialogue.BOS):
    return f"{before}{dialogue.USER}{question}{dialogue.ASSISTANT}{dialogue.THINK}\n"


def reply_texts(model, tokenizer, prompts):
    end = tokenizer.token_to_id(dialogue.EOS)
    return [tokenizer.decode([t for t in reply if t != end], skip_special_tokens=False)
            for reply in generate(model, tokenizer, prompts)]


def accuracy(model, tokenizer, rows, before=None):
    """Share of right answers, and (question, wanted, text) of the wrong ones."""
    prompts = [chat_prompt(row["question"], before[i] if before else dialogue.BOS) for i, row in enumerate(rows)]
    texts = reply_texts(model, tokenizer, prompts)
    wrong = [(row["question"], row["answer"], text) for row, text in zip(rows, texts)
             if last_number(text) != row["answer"]]
    return 1 - len(wrong) / len(rows), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("sums")
    parser.add_argument("--limit", type=int, default=0)
    args = parser.parse_args()
    with open(args.sums, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = rows[:args.limit] if args.limit else rows
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    share, wrong = accuracy(load(args.model, device), tokenizer, rows)
    for question, wanted, text in wrong[:20]:
        print(f"wrong: {question!r} is {wanted}, got {text!r}")
    print(f"accuracy {share:.4%} on {len(rows)} problems")


if __name__ == "__main__":
    main()
