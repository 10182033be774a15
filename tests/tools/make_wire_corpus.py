"""Writes the seeds of the fuzz targets for worker messages, step bodies, control messages and journals.

    python3 tests/tools/make_wire_corpus.py

The layouts are those of runtime/wire/*.h; the fuzzers find the rest from here."""
import pathlib
import struct

CORPUS = pathlib.Path(__file__).resolve().parents[1] / "fuzz" / "corpus"


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def worker_messages():
    head = struct.Struct("<IIQ")
    put("worker_msg", "step", head.pack(1, 3, 17))
    result = lambda token, tops: struct.pack("<IBBHf", token, 0, len(tops), 0, -0.5) + b"".join(
        struct.pack("<If", i, p) for i, p in tops)
    done = head.pack(2, 3, 17) + struct.pack("<II", 900, 2)
    put("worker_msg", "done", done + result(5, []) + result(6, [(6, -0.5), (7, -1.5)]))
    put("worker_msg", "done_empty", head.pack(2, 3, 17) + struct.pack("<II", 900, 0))
    put("worker_msg", "done_short", done + result(5, []))
    put("worker_msg", "error", head.pack(3, 3, 17) + b"out of memory")


def padded(data):
    return data + bytes(-len(data) % 8)


def step_bodies():
    sampling = lambda first, count: struct.pack("<QIIfffIfffiII", 7, 0, 5, 0.5, 0.9, 0.0, 3, 1.1, 0.0, 0.0, 2, first,
                                                count)
    rows = struct.pack("<IIII", 0, 5, 0, 1) + struct.pack("<IIII", 3, 1, 7, 1)
    inits = struct.pack("<II", 0, 0) + sampling(0, 2)
    runs = struct.pack("<IIII", 0, 0, 5, 0)
    ids = struct.pack("<5I", 1, 2, 3, 4, 99)
    blocks = struct.pack("<III", 0, 0, 1) + struct.pack("<III", 0, 1, 20)
    bias = struct.pack("<If", 3, -1.0) + struct.pack("<If", 99, 50.0)

    def body(parts, n_tokens, n_sampled):
        arrays = b"".join(padded(part) for part, _ in parts)
        counts = [len(part) // size for part, size in parts]
        header = struct.pack("<QII8I", 1, 1, 48 + len(arrays), counts[0], n_tokens, n_sampled, *counts[1:])
        return header + arrays

    full = [(rows, 16), (inits, 64), (runs, 16), (ids, 4), (blocks, 12), (bias, 8)]
    put("step_body", "full", body(full, 6, 2))
    put("step_body", "decode", body([(rows[16:], 16), (b"", 64), (b"", 16), (b"", 4), (b"", 12), (b"", 8)], 1, 1))
    put("step_body", "empty", body([(b"", 16), (b"", 64), (b"", 16), (b"", 4), (b"", 12), (b"", 8)], 0, 0))
    put("step_body", "wrong_sum", body(full, 7, 2))


def control_messages():
    fields = lambda kind, rank=0, id_bytes=0: struct.pack("<IIII", kind, 0, rank, 1) + struct.pack(
        "<QQI", 5, 10, id_bytes)
    for kind in range(1, 14):
        put("control_msg", f"type_{kind:02}", b"\x01" + fields(kind) + b"\0\0\0\0" + b"some text")
    put("control_msg", "descriptor", b"\x03" + fields(11))
    put("control_msg", "bad_rank", b"\x01" + fields(2, rank=16))
    put("control_msg", "bad_ids", b"\x03" + fields(3, id_bytes=257))
    put("control_msg", "raw", b"\x00TNDM")


def journals():
    patch = lambda where, what: struct.pack("<I", where)[:3] + struct.pack("<I", what)
    put("journal", "whole", b"")
    put("journal", "header", patch(3, 6))
    # Slots begin at byte 64 and take 512 bytes: generation, appended, finish, ... of the first two.
    for i in range(16):
        put("journal", f"slot_{i:02}", patch(16 + i, 1) + patch(16 + 128 + i, 0xFFFFFFFF))
    put("journal", "several", b"".join(patch(16 + 128 * k + 16 + k, 3) for k in range(5)))


worker_messages()
step_bodies()
control_messages()
journals()
