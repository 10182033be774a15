"""A proxy in front of a TCP port that makes a bad network of it: what it forwards is split at random, held up now and
then, and after a random number of bytes in either direction the connection is cut, by an end or by a reset, also in the
middle of a frame."""

import contextlib
import random
import selectors
import socket
import struct
import threading
import time


class _Pair:
    def __init__(self, client, server, budget, hold):
        self.sockets = {client: server, server: client}
        self.budget = budget  # bytes until the cut
        self.hold = hold


class Proxy:
    """Listens on `address`. `mean_bytes` is the mean life of a connection; None never cuts."""

    def __init__(self, target, mean_bytes, seed):
        self.target = target
        self.mean_bytes = mean_bytes
        self.chance = random.Random(seed)
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = self.listener.getsockname()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.stopping = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self):
        self.stopping = True
        self.thread.join()

    def _run(self):
        pairs = set()
        while not self.stopping:
            for key, _ in self.selector.select(0.05):
                if key.fileobj is self.listener:
                    pairs.add(self._accept())
                elif key.data in pairs and not self._forward(key.data, key.fileobj):
                    self._close(key.data)
                    pairs.discard(key.data)
        for pair in pairs - {None}:
            self._close(pair)
        self.listener.close()

    def _accept(self):
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection(self.target, timeout=10)
        except OSError:  # between two front-ends
            client.close()
            return None
        budget = int(self.chance.expovariate(1 / self.mean_bytes)) + 1 if self.mean_bytes else float("inf")
        pair = _Pair(client, server, budget, self.chance.random() < 0.2)
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(side, selectors.EVENT_READ, pair)
        return pair

    def _forward(self, pair, side):
        """Takes some bytes off one side and gives them to the other; False when the pair is over."""
        try:
            data = side.recv(self.chance.choice((1, 7, 64, 1024, 16384)))
            if pair.hold and self.chance.random() < 0.02:
                time.sleep(0.001)
            if not data:
                return False
            part = data[: min(len(data), pair.budget)]
            pair.budget -= len(part)
            pair.sockets[side].sendall(part)
        except OSError:
            return False
        if pair.budget <= 0:
            self.cuts += 1
            return False
        return True

    def _close(self, pair):
        reset = self.chance.random() < 0.5
        for side in pair.sockets:
            self.selector.unregister(side)
            with contextlib.suppress(OSError):
                if reset:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.close()
