"""A client of the stream protocol for the tests, on the independent codec: it believes nothing that the server says, and
goes on after every cut. One connection carries many requests."""

import contextlib
import os
import select
import socket
import struct
import time

import tsp_codec as tsp
from support import sums

STREAMS = 64  # of the long runs


class Cut(Exception):
    """The connection is gone."""


class Refused(Exception):
    """An ERROR frame."""

    def __init__(self, fields):
        self.code = tsp.number(fields, 1)
        self.text = tsp.value(fields, 3).decode()
        self.retry_after_ms = tsp.number(fields, 5)
        self.param = tsp.value(fields, 7).decode()
        super().__init__(f"{self.code}: {self.text}")


class Connection:
    """A welcomed connection; frames in, frames out."""

    def __init__(self, address, key=None, timeout=60, hello=True):
        self.buffer = bytearray()
        self.welcome = None
        self.last_stream = 0
        try:
            self.socket = socket.create_connection(address, timeout=timeout)
        except OSError as error:
            raise Cut(str(error)) from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hello:
            self.handshake(key)

    def handshake(self, key=None):
        fields = [tsp.u32(1, tsp.VERSION), tsp.text(2, "e2e"), (43210, os.urandom(3))]
        if key is not None:
            fields.insert(1, tsp.text(3, key))
        self.send_bytes(tsp.MAGIC + tsp.frame(tsp.HELLO, 0, fields))
        kind, _, stream, reply = self.receive()
        if kind == tsp.ERROR:
            raise Refused(reply)
        assert (kind, stream) == (tsp.WELCOME, 0), (kind, stream)
        self.welcome = reply

    def send_bytes(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Cut(str(error)) from error

    def send(self, kind, stream=0, fields=(), flags=0):
        self.send_bytes(tsp.frame(kind, stream, fields, flags))

    def next_stream(self):
        self.last_stream += 1
        return self.last_stream

    def receive(self, timeout=None):
        """The next frame but PING, which it answers; None when `timeout` seconds pass without one."""
        while True:
            frame = tsp.take_frame(self.buffer)
            if frame is not None:
                if frame[0] != tsp.PING:
                    return frame
                self.send(tsp.PONG, 0, frame[3])
                continue
            if timeout is not None and not select.select([self.socket], [], [], timeout)[0]:
                return None
            try:
                data = self.socket.recv(65536)
            except OSError as error:
                raise Cut(str(error)) from error
            if not data:
                raise Cut("closed")
            self.buffer += data

    def expect(self, kind, stream=0):
        """The next frame, which must be of this type and stream; its fields."""
        frame = self.receive()
        if frame[0] == tsp.ERROR and kind != tsp.ERROR:
            raise Refused(frame[3])
        assert frame[0] == kind and frame[2] == stream, f"{tsp.NAMES[frame[0]]} on {frame[2]}: {frame[3]}"
        return frame[3]

    def close(self, reset=False):
        with contextlib.suppress(OSError):
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()


class Choice:
    def __init__(self):
        self.ids = []
        self.text = b""
        self.reasoning = b""
        self.logprobs = []
        self.finish = None


class Request:
    """One request and what came of it."""

    def __init__(self, fields, credit=None):
        self.id = os.urandom(16)
        self.fields = [(1, self.id), *fields]
        self.credit = credit
        self.granted = 0
        self.accepted = False
        self.ended = False
        self.usage = None
        self.error = None
        self.choices = []
        self.times = []  # of TOKENS

    def _credit(self, tag):
        self.granted = self.credit or 0
        return [tsp.u32(tag, self.credit)] if self.credit is not None else []

    def submit(self, connection):
        stream = connection.next_stream()
        connection.send(tsp.SUBMIT, stream, self.fields + self._credit(57))
        return stream

    def resume(self, connection):
        stream = connection.next_stream()
        fields = [(1, self.id), tsp.u64s(3, [len(choice.ids) for choice in self.choices])]
        connection.send(tsp.RESUME, stream, fields + self._credit(5))
        return stream

    def attach(self, connection):
        """SUBMIT, or RESUME where it was accepted before; the stream's number."""
        if self.accepted:
            return self.resume(connection)
        return self.submit(connection)

    def take(self, connection, frame):
        """Takes a frame of this request; True when it was the last one."""
        kind, flags, stream, fields = frame
        if kind == tsp.ACCEPTED:
            assert tsp.value(fields, 1) == self.id
            if not self.accepted:
                self.accepted = True
                self.choices = [Choice() for _ in range(tsp.number(fields, 5))]
        elif kind == tsp.TOKENS:
            self._take_tokens(connection, stream, fields)
        elif kind == tsp.DONE:
            self._take_done(flags, fields)
        elif kind == tsp.ERROR:
            self.error = Refused(fields)
        else:
            raise AssertionError(f"type {kind}")
        if flags & tsp.END:
            self.ended = self.error is None
            return True
        return False

    def _take_tokens(self, connection, stream, fields):
        self.times.append(time.monotonic())
        choice = self.choices[tsp.number(fields, 1)]
        ids = tsp.ids(fields, 5)
        offset = tsp.number(fields, 3)
        assert offset == len(choice.ids), f"offset {offset} where {len(choice.ids)} ids were"
        choice.ids += ids
        choice.text += tsp.value(fields, 7)
        choice.reasoning += tsp.value(fields, 9)
        if tsp.value(fields, 11):
            choice.logprobs += tsp.logprobs(tsp.value(fields, 11), len(ids))
        if self.credit is not None:
            self.granted -= len(ids)
            assert self.granted >= 0, "more than was granted"
            if self.granted < self.credit // 2:
                self.granted += self.credit
                connection.send(tsp.CREDIT, stream, [tsp.u32(1, self.credit)])

    def _take_done(self, flags, fields):
        choice = self.choices[tsp.number(fields, 1)]
        assert tsp.number(fields, 5) == len(choice.ids), "DONE counts other ids"
        assert tsp.number(fields, 7) == tsp.crc32c(struct.pack(f"<{len(choice.ids)}I", *choice.ids)), "checksum"
        if choice.finish is None:  # it comes again after a resume
            choice.text += tsp.value(fields, 9)
            choice.reasoning += tsp.value(fields, 11)
        choice.finish = tsp.number(fields, 3)
        if flags & tsp.END:
            self.usage = tuple(tsp.number(fields, tag) for tag in (13, 15, 17))

    def result(self):
        """All that two equal answers have in common."""
        return self.usage, [(c.finish, c.ids, c.text, c.reasoning, c.logprobs) for c in self.choices]


def ask(address, fields, key=None, credit=None):
    """One request on a connection of its own, to its end."""
    connection = Connection(address, key)
    try:
        request = Request(fields, credit)
        request.submit(connection)
        while not request.take(connection, connection.receive()):
            pass
        if request.error is not None:
            raise request.error
        connection.send(tsp.ACK, 1)
        return request
    finally:
        connection.close()


def carry(address, requests, key=None, doubled=lambda: False, deadline_s=600):
    """Brings all requests to their end, and their ACKs to the server, over as many connections as it takes. Where
    doubled() says so, a SUBMIT is sent twice. Returns the number of connections that were lost."""
    cuts = 0
    owed = []  # ended requests whose ACK may have been lost
    deadline = time.monotonic() + deadline_s
    while owed or any(not request.ended for request in requests):
        assert time.monotonic() < deadline, "no end in sight"
        connection = None
        try:
            connection = Connection(address, key)
            _carry_once(connection, [request for request in requests if not request.ended], owed, doubled)
        except Cut:
            cuts += 1
            time.sleep(0.001)
        finally:
            if connection is not None:
                connection.close()
    return cuts


def _carry_once(connection, requests, owed, doubled):
    streams = {}
    for request in owed:
        connection.send(tsp.ACK, 0, [(1, request.id)])
    if owed:
        connection.send(tsp.PING, 0, [tsp.u64(1, len(owed))])
    for request in requests:
        again = not request.accepted and doubled()
        stream = request.attach(connection)
        streams[stream] = request
        if again:
            streams[request.submit(connection)] = request
            del streams[stream]
    open_requests = len(requests)
    while open_requests or owed:
        frame = connection.receive()
        if frame[0] == tsp.PONG:  # what was sent before its PING has arrived
            del owed[: tsp.number(frame[3], 1)]
            continue
        assert frame[2] != 0, f"{tsp.NAMES[frame[0]]} on stream 0: {frame[3]}"
        request = streams.get(frame[2])
        if request is None:  # the first of two SUBMITs, which the second superseded
            assert frame[0] in (tsp.ACCEPTED, tsp.TOKENS, tsp.DONE, tsp.ERROR)
            continue
        if request.take(connection, frame):
            if request.error is not None:
                raise request.error
            owed.append(request)
            connection.send(tsp.ACK, frame[2])
            open_requests -= 1
            if not open_requests:
                connection.send(tsp.PING, 0, [tsp.u64(1, len(owed))])


def asked():
    """Greedy and seeded, short and long, with several choices, log-probabilities and stop texts among them."""
    made = []
    for index, (question, _) in enumerate(sums(STREAMS)):
        fields = [tsp.nested(7, [tsp.text(1, "user"), tsp.text(3, question)]), tsp.f32(15, 0)]
        if index % 4 == 1:
            fields[1:] = [tsp.f32(15, 1.1), tsp.u64(29, index), tsp.f32(17, 0.95), tsp.u32(37, 2)]
        if index % 4 == 2:
            fields += [tsp.u8(39, 1), tsp.u32(11, 250)]
        if index % 4 == 3:
            fields[1:] = [tsp.f32(15, 0.9), tsp.u64(29, index), tsp.u32(13, 2), tsp.text(31, "=0")]
        made.append(fields)
    return made
