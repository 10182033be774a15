"""The load of the long runs: all STREAMS of tsp_client over a few connections, asked over and over, and every answer
held to the undisturbed one, id by id and byte by byte."""

import random
import threading

from support import expect_equal
from tsp_client import STREAMS, Request, ask, asked, carry

CONNECTIONS = 8


class Load:
    """CONNECTIONS threads at `address`, each with its share of the streams, until stop(). What the answers must be is
    asked at `server` before anything is disturbed. A request gets one of `credits`; a SUBMIT is sent twice with the
    chance `doubled`."""

    def __init__(self, server, address, seed, credits=(64,), doubled=0.0):
        self.address = address
        self.credits = credits
        self.doubled = doubled
        self.asked = asked()
        self.wanted = [ask((server.host, server.tcp_port), fields).result() for fields in self.asked]
        self.metrics_before = server.metrics()
        self.lock = threading.Lock()
        self.current = [[] for _ in range(CONNECTIONS)]
        self.times = []  # when the TOKENS of each request came
        self.answers = 0
        self.failures = []
        self.stopping = False
        self.threads = [threading.Thread(target=self._work, args=(n, random.Random(seed + n)), daemon=True)
                        for n in range(CONNECTIONS)]
        for thread in self.threads:
            thread.start()

    def _work(self, number, chance):
        indices = range(number, STREAMS, CONNECTIONS)
        while not self.stopping and not self.failures:
            requests = [Request(self.asked[index], credit=chance.choice(self.credits)) for index in indices]
            self.current[number] = requests
            try:
                carry(self.address, requests, doubled=lambda: chance.random() < self.doubled)
                for index, request in zip(indices, requests):
                    expect_equal(request.result(), self.wanted[index], f"answer {index}")
            except Exception as error:  # any failure of one stream fails the run
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            with self.lock:
                self.answers += len(requests)
                self.times += [request.times for request in requests]

    def went_on(self, since):
        """Every request has had a token after `since`, or its end: one that is computed at three deaths of its group
        without a token of its own is given up, and rightly."""
        return all(request.ended or (request.times and request.times[-1] > since)
                   for requests in self.current for request in requests)

    def silences(self, spans):
        """For each span (from, to) and each request that had tokens before and after its beginning: the longest time
        between two TOKENS of the request of which some lies within the span."""
        found = []
        for times in self.times:
            for start, end in spans:
                if times and times[0] < start < times[-1]:
                    found.append(max(later - earlier for earlier, later in zip(times, times[1:])
                                     if later > start and earlier < end))
        return found

    def stop(self):
        """Lets the running requests end; none may have failed."""
        self.stopping = True
        for thread in self.threads:
            thread.join()
        expect_equal(self.failures, [], "failures")
