"""Long run: connections of the stream protocol cut at 10,000 random byte positions (CUTS=N for another number) under 64
streams. Every answer must equal the uncut one, id by id and byte by byte; a SUBMIT that is sent twice runs once."""

import os
import random
import threading
import time

from support import Server, expect, expect_equal, main, test
from tsp_client import STREAMS, Request, ask, asked, carry
from tsp_proxy import Proxy

CUTS = int(os.environ.get("CUTS", "10000"))
CONNECTIONS = 8
MEAN_BYTES = 2500
SEED = 20261125


class Load:
    """Each of CONNECTIONS threads carries its share of the streams to the end, and begins anew until it is stopped."""

    def __init__(self, address, requests, wanted):
        self.address = address
        self.asked = requests
        self.wanted = wanted
        self.lock = threading.Lock()
        self.answers = 0
        self.failures = []
        self.stopping = False
        self.threads = [threading.Thread(target=self.work, args=(first,), daemon=True) for first in range(CONNECTIONS)]
        for thread in self.threads:
            thread.start()

    def work(self, first):
        chance = random.Random(SEED + first)
        while not self.stopping and not self.failures:
            indices = range(first, STREAMS, CONNECTIONS)
            requests = [Request(self.asked[index], credit=chance.choice((None, 5, 40))) for index in indices]
            try:
                carry(self.address, requests, doubled=lambda: chance.random() < 0.5)
                for index, request in zip(indices, requests):
                    expect_equal(request.result(), self.wanted[index], f"answer {index}")
            except Exception as error:  # any failure of one stream fails the run
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            with self.lock:
                self.answers += len(requests)


@test(seconds=7200)
def cut_connections_lose_nothing():
    server = Server(config="configs/cpu-x1.yaml")
    target = (server.host, server.tcp_port)
    requests = asked()
    wanted = [ask(target, fields).result() for fields in requests]
    before = server.metrics()
    proxy = Proxy(target, MEAN_BYTES, SEED)
    start = time.monotonic()
    load = Load(proxy.address, requests, wanted)
    while proxy.cuts < CUTS and not load.failures:
        time.sleep(0.2)
    load.stopping = True
    for thread in load.threads:
        thread.join()
    seconds = time.monotonic() - start
    expect_equal(load.failures, [], "failures")
    metrics = server.metrics()
    ran = metrics["tandem_tcp_submits_total"] - before["tandem_tcp_submits_total"]
    expect_equal(ran, load.answers, "requests that ran")
    expect(proxy.cuts >= CUTS, f"{proxy.cuts} cuts")
    resumes = metrics["tandem_stream_resumes_total"]
    print(f"     {proxy.cuts} cuts in {seconds:.0f} s, {load.answers} answers over {STREAMS} streams, {resumes:.0f} "
          f"resumes and repeated SUBMITs, 0 differences; {ran:.0f} requests ran")
    proxy.stop()
    server.stop()


if __name__ == "__main__":
    main()
