"""Writes safetensors files with numpy alone, a tensor at a time; bfloat16 is kept as uint16 bits."""
import json
import struct

import numpy

WIDTH = {"F32": 4, "F16": 2, "BF16": 2}
TAG = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def bfloat16_bits(values):
    """float32 to bfloat16 bits, to nearest, ties to even."""
    bits = numpy.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def encode(values, tag):
    """The file's bytes of a float32 array."""
    if tag == "BF16":
        return bfloat16_bits(values).tobytes()
    return numpy.ascontiguousarray(values).astype({"F32": "<f4", "F16": "<f2"}[tag]).tobytes()


def count(shape):
    total = 1
    for size in shape:
        total *= size
    return total


def write(path, tag, tensors):
    """tensors: list of (name, shape, make); make() returns the float32 array when its turn comes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        size = count(shape) * WIDTH[tag]
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for name, shape, make in tensors:
            data = encode(make(), tag)
            if len(data) != count(shape) * WIDTH[tag]:
                raise ValueError(f"{name}: {len(data)} bytes do not fit the shape {list(shape)}")
            out.write(data)
