"""Long run: 64 streams that are read as they come, beside one whose reader stops for 30 s (STOP_S=N for another time)
with credit without limit: their rate with and without it, and the front-end's memory before, during and after. The slow
stream misses nothing. Its answer, which was computed before, is several times what the sockets hold, so that it is the
server that has to wait, and costs no computing while the others are measured."""

import array
import fcntl
import os
import socket
import termios
import threading
import time

import tsp_codec as tsp
from support import Server, expect, expect_equal, main, test, wait_for
from tsp_client import STREAMS, Connection, Request, ask
from tsp_load import CONNECTIONS

STOP_S = float(os.environ.get("STOP_S", "30"))
QUESTION = [tsp.nested(7, [tsp.text(1, "user"), tsp.text(3, "What is 12 + 30?")]), tsp.u8(39, 1)]
READ = [*QUESTION, tsp.f32(15, 0), tsp.u32(11, 200)]
SLOW = [*QUESTION, tsp.f32(15, 0.9), tsp.u64(29, 1), tsp.u32(13, 8), tsp.u32(11, 3900), tsp.u32(37, 20)]
RECEIVE_BYTES = 16384


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS:")).split()[1])


def compute_slow(server, address):
    """The slow request, with all of its answer but a token in the server."""
    slow = Request(SLOW, credit=1)
    connection = Connection(address)
    slow.submit(connection)
    slow.take(connection, connection.receive())
    wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0, "the slow answer to be computed", 300)
    connection.close()
    slow.credit = None
    return slow


def unread_kib(connection):
    """What lies in the socket."""
    size = array.array("i", [0])
    fcntl.ioctl(connection.socket, termios.FIONREAD, size)
    return size[0] // 1024


class Readers:
    """CONNECTIONS threads that keep STREAMS streams going and count their ids."""

    def __init__(self, address):
        self.address = address
        self.counts = [0] * CONNECTIONS
        self.failures = []
        self.stopping = False
        self.threads = [threading.Thread(target=self.work, args=(n,), daemon=True) for n in range(CONNECTIONS)]
        for thread in self.threads:
            thread.start()

    def work(self, number):
        try:
            connection = Connection(self.address)
            streams = {}
            while not self.stopping:
                while len(streams) < STREAMS // CONNECTIONS:
                    request = Request(READ, credit=64)
                    streams[request.submit(connection)] = request
                frame = connection.receive()
                if frame[0] == tsp.TOKENS:
                    self.counts[number] += len(tsp.value(frame[3], 5)) // 4
                if streams[frame[2]].take(connection, frame):
                    expect(streams.pop(frame[2]).ended, "an error")
                    connection.send(tsp.ACK, frame[2])
            connection.close()
        except Exception as error:  # any failure fails the run
            self.failures.append(f"{type(error).__name__}: {error}")

    def rate(self, seconds):
        before, start = sum(self.counts), time.monotonic()
        time.sleep(seconds)
        expect_equal(self.failures, [], "failures")
        return (sum(self.counts) - before) / (time.monotonic() - start)

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()


@test(seconds=1200)
def a_reader_that_stops_holds_back_nobody():
    # PING lies behind megabytes that this reader is slow to take.
    server = Server("--set", "engine.max_num_seqs=128", "--set", "tcp.send_buffer_kib=256", "--set",
                    "tcp.resume_window=600", "--set", "tcp.ping_interval=300", config="configs/cpu-x1.yaml")
    address = (server.host, server.tcp_port)
    wanted = ask(address, SLOW).result()
    slow = compute_slow(server, address)
    readers = Readers(address)
    wait_for(lambda: all(readers.counts), "every reader's first ids", 60)
    pid = server.frontend()
    before_rate, before_kib = readers.rate(STOP_S), resident_kib(pid)
    connection = Connection(address)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    slow.resume(connection)
    first_rate, unread = readers.rate(STOP_S / 2), unread_kib(connection)
    second_rate, during_kib = readers.rate(STOP_S / 2), resident_kib(pid)
    expect(0 < unread == unread_kib(connection), "the slow stream's socket was not full")
    while not slow.take(connection, connection.receive()):
        pass
    expect_equal(slow.result(), wanted, "the slow stream's answer")
    connection.send(tsp.ACK, 1)
    after_rate, after_kib = readers.rate(STOP_S), resident_kib(pid)
    readers.stop()
    print(f"     {STREAMS} streams: {before_rate:.0f} tokens/s before, {(first_rate + second_rate) / 2:.0f} while one "
          f"reader stops for {STOP_S:.0f} s, {after_rate:.0f} after; front-end {before_kib / 1024:.1f} MiB before, "
          f"{during_kib / 1024:.1f} during, {after_kib / 1024:.1f} after")
    server.stop()


if __name__ == "__main__":
    main()
