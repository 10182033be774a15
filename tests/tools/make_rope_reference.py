#!/usr/bin/env python3
"""Writes tests/data/rope_reference.txt: cosines and sines of transformers' float32 rotary embedding.

Needs torch and transformers. A line "config NAME head_dim theta kind factor low high original" starts a table, a line
"POSITION i cos sin" is one angle, as bits of the float32 values in hexadecimal.
"""

import struct
import sys

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

TABLES = [
    ("qwen-1.5b", 128, 10000.0, None),
    ("qwen-32b", 128, 1000000.0, None),
    ("stories", 8, 10000.0, None),
    ("llama-8b", 128, 500000.0, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 8192}),
    ("tiny-llama3", 32, 10000.0, {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
    ("linear", 64, 10000.0, {"rope_type": "linear", "factor": 2.5}),
]
POSITIONS = [0, 1, 2, 3, 17, 255, 1023, 4095, 8191, 32767, 131071]


def bits(value: float) -> str:
    return struct.pack(">f", value).hex()


def main() -> None:
    with open(sys.argv[1], "w", encoding="ascii") as out:
        for name, dim, theta, scaling in TABLES:
            config = LlamaConfig(hidden_size=dim * 2, num_attention_heads=2, head_dim=dim, rope_theta=theta,
                                 max_position_embeddings=131072,
                                 rope_parameters=dict(scaling or {"rope_type": "default"}, rope_theta=theta))
            rope = LlamaRotaryEmbedding(config)
            cos, sin = rope(torch.zeros(1, 1, dim), torch.tensor([POSITIONS]))
            s = scaling or {}
            print("config", name, dim, theta, s.get("rope_type", "plain"), s.get("factor", 1.0),
                  s.get("low_freq_factor", 0.0), s.get("high_freq_factor", 0.0),
                  s.get("original_max_position_embeddings", 0), file=out)
            for p, position in enumerate(POSITIONS):
                for i in range(dim // 2):
                    print(position, i, bits(cos[0, p, i].item()), bits(sin[0, p, i].item()), file=out)


if __name__ == "__main__":
    main()
