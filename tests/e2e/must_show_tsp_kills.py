"""Long run: the front-end is killed with -9 100 times (KILLS=N for another number) under 64 streams of the stream
protocol, and then as often with front-end and worker kills mixed. Every answer must equal the undisturbed one, id by id
in order; what a client sees is a pause, whose distribution is printed."""

import http.client
import os
import random
import threading
import time

from support import Server, expect, expect_equal, kill, main, percentile, test, wait_for
from tsp_client import STREAMS, Request, ask, asked, carry

KILLS = int(os.environ.get("KILLS", "100"))
CONNECTIONS = 8
SEED = 20261126


class Load:
    """CONNECTIONS threads, each with its share of the streams, which they ask over and over."""

    def __init__(self, address, requests, wanted):
        self.address = address
        self.asked = requests
        self.wanted = wanted
        self.lock = threading.Lock()
        self.current = [[] for _ in range(CONNECTIONS)]
        self.times = []
        self.answers = 0
        self.failures = []
        self.stopping = False
        self.threads = [threading.Thread(target=self.work, args=(n,), daemon=True) for n in range(CONNECTIONS)]
        for thread in self.threads:
            thread.start()

    def work(self, number):
        indices = range(number, STREAMS, CONNECTIONS)
        while not self.stopping and not self.failures:
            requests = [Request(self.asked[index], credit=64) for index in indices]
            self.current[number] = requests
            try:
                carry(self.address, requests)
                for index, request in zip(indices, requests):
                    expect_equal(request.result(), self.wanted[index], f"answer {index}")
            except Exception as error:  # any failure of one stream fails the run
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            with self.lock:
                self.answers += len(requests)
                self.times += [request.times for request in requests]

    def went_on(self, since):
        """Every request has had a frame after `since`, or its end: one that is computed at three deaths of its group
        without a token of its own is given up, and rightly."""
        return all(request.ended or (request.times and request.times[-1] > since)
                   for requests in self.current for request in requests)

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()


def pauses(load, kills):
    """For each kill and each stream that was under way: from the kill to the stream's next frame."""
    found = []
    for times in load.times:
        for moment in kills:
            if times and times[0] < moment < times[-1]:
                found.append(next(time_ for time_ in times if time_ > moment) - moment)
    return found


def metric(server, name):
    """None while there is no front-end."""
    try:
        return server.metrics()[name]
    except (OSError, http.client.HTTPException):
        return None


def wait_for_new_tokens(server, load, victim, losses):
    """The supervisor gives up over deaths with no token in between: what the next group or front-end says must be new."""
    before = 0
    if losses is not None:
        wait_for(lambda: load.failures or (metric(server, "tandem_group_losses_total") > losses and
                                           metric(server, "tandem_group_up")), f"the group after {victim}", 120)
        before = metric(server, "vllm:generation_tokens_total")
    wait_for(lambda: load.failures or (metric(server, "vllm:generation_tokens_total") or 0) > before, "tokens", 120)


def run_kills(config, choose_victim, what):
    chance = random.Random(SEED)
    server = Server(config=config)
    address = (server.host, server.tcp_port)
    requests = asked()
    wanted = [ask(address, fields).result() for fields in requests]
    load = Load(address, requests, wanted)
    wait_for(lambda: load.went_on(0), "the first frames", 60)
    kills = []
    while len(kills) < KILLS and not load.failures:
        time.sleep(chance.uniform(0, 0.4))
        victim = choose_victim(server, chance)
        if victim is None:
            continue
        losses = None if victim == server.frontend() else metric(server, "tandem_group_losses_total")
        kills.append(time.monotonic())
        kill(victim)
        wait_for_new_tokens(server, load, victim, losses)
        wait_for(lambda: load.failures or load.went_on(kills[-1]), f"every request to go on after kill {len(kills)}",
                 120)
    load.stop()
    expect_equal(load.failures, [], "failures")
    expect_equal(len(kills), KILLS, "kills")
    found = pauses(load, kills)
    expect(found, "no stream was under way at any kill")
    print(f"     {what}: {KILLS} kills, {load.answers} answers over {STREAMS} streams, 0 differences; pause p50 "
          f"{percentile(found, 0.5):.2f} s, p99 {percentile(found, 0.99):.2f} s, most {max(found):.2f} s, of "
          f"{len(found)}")
    server.stop()


@test(seconds=7200)
def killed_frontends_are_not_killed_streams():
    run_kills("configs/cpu-x1.yaml", lambda server, _: server.frontend(), "front-end")


@test(seconds=7200)
def kills_of_frontends_and_workers_mixed():
    def choose(server, chance):
        victims = list(server.workers().values())
        return chance.choice([server.frontend(), chance.choice(victims)]) if victims else None

    run_kills("configs/cpu-x2.yaml", choose, "front-end and workers mixed")


if __name__ == "__main__":
    main()
