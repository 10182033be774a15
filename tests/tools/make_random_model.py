#!/usr/bin/env python3
"""Writes a small Hugging Face directory with random weights, one of every shape class.

    python3 make_random_model.py CLASS OUT_DIR [--seed N] [--dtype float32|bfloat16|float16] [--shards N]
                                 [--tokenizer DIR] [--set key=value ...]
    python3 make_random_model.py --list

The bytes depend on the arguments alone: weights come from a counter hash in integer arithmetic, not from a library's
random numbers, so a reference made on one machine holds on any other. The scales keep attention sharp and logits
well apart, so that greedy ids seldom hang on a rounding. With --tokenizer the tokenizer files and the begin and end
ids are taken from another model directory, and the vocabulary grows to hold them. Needs python3 and numpy.
"""
import argparse
import json
import os
import shutil
import sys

try:
    import numpy
    import safetensors_np
except ImportError:
    sys.exit("make_random_model.py needs numpy; on Debian: apt-get install python3-numpy")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 3,
    "intermediate_size": 352, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 128, "num_hidden_layers": 3,
    "intermediate_size": 320, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None,
    "hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 64,
    "max_window_layers": 2, "bos_token_id": 1, "eos_token_id": 2,
}
# Bands of the llama3 scaling lie within reach of short tests: an original context of 64 positions.
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}

# name -> (what is special, configuration, number of weight files)
CLASSES = {
    "qwen2": ("Qwen2: QKV bias, 8 heads over 4; a sliding window that is not used", QWEN2, 1),
    "qwen2-tied": ("the same with a tied head", dict(QWEN2, tie_word_embeddings=True), 1),
    "qwen2-sharded": ("the same in three files with an index", QWEN2, 3),
    "qwen2-overflow": ("values that float16 cannot hold: see overflow()", dict(QWEN2, rope_theta=1e8), 1),
    "llama": ("plain Llama, 8 heads over 2", LLAMA, 1),
    "llama3": ("llama3 rope scaling", dict(LLAMA, rope_theta=500.0, rope_scaling=LLAMA3_ROPE), 1),
    "llama3-tied": ("llama3 rope scaling, tied head", dict(
        LLAMA, rope_theta=500.0, rope_scaling=LLAMA3_ROPE, tie_word_embeddings=True), 1),
    "llama-linear": ("linear rope scaling", dict(LLAMA, rope_scaling={"type": "linear", "factor": 4.0}), 1),
    "llama-headdim": ("head_dim 32, not hidden / heads = 24", dict(
        LLAMA, hidden_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=272), 1),
    "llama-kv3": ("9 heads over 3, FFN and vocabulary that split unevenly", dict(
        LLAMA, hidden_size=144, num_attention_heads=9, num_key_value_heads=3, intermediate_size=203, vocab_size=501), 1),
    "llama-mha": ("as many KV heads as heads, 4", dict(
        LLAMA, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, intermediate_size=168), 1),
    "llama-mqa": ("one KV head", dict(
        LLAMA, hidden_size=64, num_attention_heads=4, num_key_value_heads=1, intermediate_size=168), 1),
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
MASK = (1 << 64) - 1


def mix(x):
    """The finalizer of splitmix64, on a Python number or a uint64 array."""
    if isinstance(x, int):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)
    u = numpy.uint64
    x = (x ^ (x >> u(30))) * u(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> u(27))) * u(0x94D049BB133111EB)
    return x ^ (x >> u(31))


def bell(name, seed, count):
    """`count` numbers of mean 0 and variance 1: sums of the four 16-bit parts of a hashed counter."""
    key = mix(seed & MASK)
    for byte in name.encode():
        key = mix(key ^ byte)
    words = mix(numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15) + numpy.uint64(key))
    parts = words.astype("<u8").view("<u2").reshape(count, 4).astype(numpy.int64).sum(axis=1)
    return (2 * parts - 4 * 65535).astype(numpy.float64) * (numpy.sqrt(3.0) / (2.0 * 65536.0))


def scale_of(name, shape, config):
    """Standard deviation (and mean) of a tensor's weights."""
    if name.endswith("norm.weight"):
        return 0.2, 1.0
    if name.endswith("bias"):
        return 0.5, 0.0
    if name == "model.embed_tokens.weight":
        # A tied head reads the same numbers, so they also set how far logits lie apart.
        return (0.35 if config["tie_word_embeddings"] else 1.0), 0.0
    gain = 4.0 if name == "lm_head.weight" else 1.6 if "q_proj" in name or "k_proj" in name else 1.2
    return gain / numpy.sqrt(float(shape[-1])), 0.0


def shapes(config):
    """(name, shape) of every tensor, in the order of the layers."""
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = config.get("head_dim") or width // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    out = [("model.embed_tokens.weight", (rows, width))]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        out.append((layer + "input_layernorm.weight", (width,)))
        for part, height in (("q", q), ("k", kv), ("v", kv)):
            out.append((f"{layer}self_attn.{part}_proj.weight", (height, width)))
            if config["model_type"] == "qwen2":
                out.append((f"{layer}self_attn.{part}_proj.bias", (height,)))
        out.append((layer + "self_attn.o_proj.weight", (width, q)))
        out.append((layer + "post_attention_layernorm.weight", (width,)))
        out += [(layer + "mlp.gate_proj.weight", (inner, width)), (layer + "mlp.up_proj.weight", (inner, width)),
                (layer + "mlp.down_proj.weight", (width, inner))]
    out.append(("model.norm.weight", (width,)))
    if not config["tie_word_embeddings"]:
        out.append(("lm_head.weight", (rows, width)))
    return out


def overflow(name, values, config):
    """What makes of "qwen2-overflow" a model whose sums leave float16's range (65,504), while weights, activations and
    keys stay inside it. Large Qwen2 models do the same, less plainly.

    The sublayers' outputs, and with them the residual stream, are 2^17 times the usual. RMSNorm takes that out again.
    Scores q k are 282,752 more than usual, 70,688 after scaling, which softmax takes out: the two slowest of each head's
    dimensions hold a constant in queries and keys, and turn by less than 1e-4 in 500 positions.
    """
    if "v_proj" in name or "up_proj" in name:
        return values * 2.0 ** 3
    if "o_proj" in name or "down_proj" in name:
        return values * 2.0 ** 14
    if "q_proj" in name or "k_proj" in name:
        half = config["hidden_size"] // config["num_attention_heads"] // 2
        heads = values.reshape(-1, 2, half, *values.shape[1:])
        heads[:, :, half - 1] = 376.0 if name.endswith("bias") else 0.0
    return values


def tensor(name, shape, config, seed, adjust):
    def make():
        deviation, mean = scale_of(name, shape, config)
        values = (bell(name, seed, safetensors_np.count(shape)) * deviation + mean).reshape(shape)
        return (adjust(name, values, config) if adjust else values).astype(numpy.float32)
    return name, shape, make


def write_json(directory, name, value):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as out:
        json.dump(value, out, indent=1)
        out.write("\n")


def write_weights(directory, config, seed, tag, shards, adjust):
    tensors = [tensor(name, shape, config, seed, adjust) for name, shape in shapes(config)]
    if shards == 1:
        safetensors_np.write(os.path.join(directory, "model.safetensors"), tag, tensors)
        return
    where, total = {}, sum(safetensors_np.count(shape) for _, shape, _ in tensors) * safetensors_np.WIDTH[tag]
    for part in range(shards):
        chosen = tensors[len(tensors) * part // shards:len(tensors) * (part + 1) // shards]
        file = f"model-{part + 1:05d}-of-{shards:05d}.safetensors"
        safetensors_np.write(os.path.join(directory, file), tag, chosen)
        where.update((name, file) for name, _, _ in chosen)
    write_json(directory, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def take_tokenizer(source, directory, config):
    """Copies the tokenizer's files; the vocabulary and the begin and end ids follow it."""
    for name in TOKENIZER_FILES:
        path = os.path.join(source, name)
        if os.path.exists(path):
            shutil.copyfile(path, os.path.join(directory, name))
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as file:
        data = json.load(file)
    ids = list(data["model"]["vocab"].values()) + [token["id"] for token in data["added_tokens"]]
    config["vocab_size"] = max(config["vocab_size"], max(ids) + 1)
    path = os.path.join(directory, "generation_config.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            generation = json.load(file)
        config.update({key: generation[key] for key in ("bos_token_id", "eos_token_id") if key in generation})


def build(kind, directory, seed=1, dtype="float32", shards=0, tokenizer=None, changes=()):
    """Writes the directory and returns its configuration."""
    _, base, usual_shards = CLASSES[kind]
    config = dict(base, torch_dtype=dtype)
    os.makedirs(directory, exist_ok=True)
    for change in changes:
        key, _, value = change.partition("=")
        config[key] = json.loads(value)
    if tokenizer:
        take_tokenizer(tokenizer, directory, config)
    else:
        write_json(directory, "generation_config.json", {
            "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "do_sample": False})
    write_json(directory, "config.json", config)
    write_weights(directory, config, seed, safetensors_np.TAG[dtype], shards or usual_shards,
                  overflow if kind == "qwen2-overflow" else None)
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=sorted(CLASSES), metavar="CLASS")
    parser.add_argument("out", nargs="?", metavar="OUT_DIR")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(safetensors_np.TAG), default="float32")
    parser.add_argument("--shards", type=int, default=0, help="weight files (default: the class's own number)")
    parser.add_argument("--tokenizer", metavar="DIR")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="any config key, value as JSON")
    args = parser.parse_args()
    if args.list:
        for kind, (text, _, _) in CLASSES.items():
            print(f"{kind:15} {text}")
        return
    if not args.out:
        parser.error("CLASS and OUT_DIR are needed")
    config = build(args.kind, args.out, args.seed, args.dtype, args.shards, args.tokenizer, args.set)
    print(f"{args.out}: {config['model_type']}, hidden {config['hidden_size']}, {args.dtype}, seed {args.seed}")


if __name__ == "__main__":
    main()
