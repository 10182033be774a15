"""Long run: the front-end is killed with -9 100 times (KILLS=N for another number) under 64 streams of the stream
protocol, and then as often with front-end and worker kills mixed. Every answer must equal the undisturbed one, id by id
in order; what a client sees is a pause, whose distribution is printed: a stream's longest silence from a kill until
every stream had new tokens, beside its longest silence in a time without kills."""

import http.client
import os
import random
import re
import time

from support import Server, expect, expect_equal, kill, main, percentile, test, wait_for
from tsp_client import STREAMS
from tsp_load import Load

KILLS = int(os.environ.get("KILLS", "100"))
CALM_S = 5  # before the first kill, to compare with
SEED = 20261126


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
    load = Load(server, (server.host, server.tcp_port), SEED)
    wait_for(lambda: load.went_on(0), "the first tokens", 60)
    calm = (time.monotonic(), time.monotonic() + CALM_S)
    time.sleep(CALM_S)
    kills = []
    while len(kills) < KILLS and not load.failures:
        time.sleep(chance.uniform(0, 0.4))
        victim = choose_victim(server, chance)
        if victim is None:
            continue
        losses = None if victim == server.frontend() else metric(server, "tandem_group_losses_total")
        killed = time.monotonic()
        kill(victim)
        wait_for_new_tokens(server, load, victim, losses)
        again = time.monotonic()
        wait_for(lambda: load.failures or load.went_on(again), f"all to go on after kill {len(kills) + 1}", 120)
        kills.append((killed, time.monotonic()))
    load.stop()
    expect_equal(len(kills), KILLS, "kills")
    pauses, undisturbed = load.silences(kills), load.silences([calm])
    expect(pauses, "no stream was under way at any kill")
    waits = [int(ms) for ms in re.findall(r"starting (?:it )?again in (\d+) ms", server.errors())]
    print(f"     {what}: {KILLS} kills, {load.answers} answers over {STREAMS} streams, 0 differences; pause p50 "
          f"{percentile(pauses, 0.5):.2f} s, p99 {percentile(pauses, 0.99):.2f} s, most {max(pauses):.2f} s, of "
          f"{len(pauses)}; undisturbed p50 {percentile(undisturbed, 0.5):.2f} s, p99 "
          f"{percentile(undisturbed, 0.99):.2f} s; longest back-off {max(waits, default=0)} ms")
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
