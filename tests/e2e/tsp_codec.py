"""The Tandem Stream Protocol, written from runtime/wire/PROTOCOL.md and from nothing else: an independent codec that
the end-to-end tests speak with. Frames are (type, flags, stream, fields); fields are (tag, bytes) pairs in order."""

import struct

MAGIC = b"\x89TSP\r\n\x1a\n"
VERSION = 0x00010000
HEADER = struct.Struct("<IBBHII")
FIELD = struct.Struct("<HHI")

(HELLO, WELCOME, SUBMIT, ACCEPTED, TOKENS, DONE, ERROR, CREDIT, ACK, CANCEL, RESUME, PING, PONG, DRAIN, STATUS,
 STATUS_REPLY, BYE) = range(1, 18)
NAMES = ("", "HELLO", "WELCOME", "SUBMIT", "ACCEPTED", "TOKENS", "DONE", "ERROR", "CREDIT", "ACK", "CANCEL", "RESUME",
         "PING", "PONG", "DRAIN", "STATUS", "STATUS_REPLY", "BYE")
END, OPTIONAL = 1, 2
STOP, LENGTH, CANCELLED = 1, 2, 3

_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Malformed(Exception):
    pass


def u8(tag, value):
    return tag, struct.pack("<B", value)


def u32(tag, value):
    return tag, struct.pack("<I", value)


def u64(tag, value):
    return tag, struct.pack("<Q", value)


def f32(tag, value):
    return tag, struct.pack("<f", value)


def text(tag, value):
    return tag, value.encode() if isinstance(value, str) else value


def u32s(tag, values):
    return tag, struct.pack(f"<{len(values)}I", *values)


def u64s(tag, values):
    return tag, struct.pack(f"<{len(values)}Q", *values)


def nested(tag, fields):
    return tag, pack_fields(fields)


def pack_fields(fields):
    return b"".join(FIELD.pack(tag, 0, len(value)) + value for tag, value in fields)


def frame(kind, stream=0, fields=(), flags=0):
    payload = pack_fields(fields)
    head = HEADER.pack(len(payload), kind, flags, 0, stream, 0)[:12]
    return head + struct.pack("<I", crc32c(payload, crc32c(head))) + payload


def unpack_fields(payload):
    fields, at = [], 0
    while at < len(payload):
        if len(payload) - at < FIELD.size:
            raise Malformed("a field's header is cut off")
        tag, zero, size = FIELD.unpack_from(payload, at)
        at += FIELD.size
        if zero or not tag or size > len(payload) - at:
            raise Malformed(f"field {tag} at {at}")
        fields.append((tag, payload[at : at + size]))
        at += size
    return fields


def take_frame(buffer):
    """Takes a frame off the front of a bytearray; None while it is incomplete."""
    if len(buffer) < HEADER.size:
        return None
    size, kind, flags, zero, stream, crc = HEADER.unpack_from(buffer)
    if zero:
        raise Malformed("the reserved bytes are not zero")
    if len(buffer) < HEADER.size + size:
        return None
    payload = bytes(buffer[HEADER.size : HEADER.size + size])
    if crc != crc32c(payload, crc32c(bytes(buffer[:12]))):
        raise Malformed("checksum")
    del buffer[: HEADER.size + size]
    return kind, flags, stream, unpack_fields(payload)


def number(fields, tag, default=None):
    """The unsigned number of a field of 1, 4 or 8 bytes."""
    for found, value in fields:
        if found == tag:
            return int.from_bytes(value, "little")
    return default


def value(fields, tag, default=b""):
    for found, data in fields:
        if found == tag:
            return data
    return default


def ids(fields, tag):
    data = value(fields, tag)
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def logprobs(data, count):
    """Per id: ((id, logprob, bytes), [tops likewise])."""
    at = 0

    def entry():
        nonlocal at
        token, logprob, size = struct.unpack_from("<IfH", data, at)
        at += 10 + size
        return token, logprob, data[at - size : at]

    result = []
    for _ in range(count):
        chosen = entry()
        (n_top,) = struct.unpack_from("<H", data, at)
        at += 2
        result.append((chosen, [entry() for _ in range(n_top)]))
    if at != len(data):
        raise Malformed("bytes behind the log-probabilities")
    return result
