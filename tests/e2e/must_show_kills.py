"""Long run: 200 random kill -9 of workers under 32 streams, greedy and seeded. Every stream must equal the undisturbed
one token by token (bytes and log-probabilities); what a client sees is a pause, whose distribution is printed."""

import random
import threading
import time

from support import Server, expect, expect_equal, kill, main, percentile, stream, sums, test, wait_for

KILLS = 200
STREAMS = 32
SEED = 20261124


def requests():
    """Half greedy, half seeded; half end by themselves, half talk on to a limit."""
    made = []
    for index, (question, _) in enumerate(sums(STREAMS)):
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        if index % 2:
            body.update(temperature=1.0, top_p=0.95, seed=index)
        if index % 4 >= 2:
            body.update(ignore_eos=True, max_tokens=300)
        made.append(body)
    return made


class Load:
    """STREAMS threads that ask the same requests over and over and hold every answer against the undisturbed one."""

    def __init__(self, server, bodies, undisturbed):
        self.server = server
        self.bodies = bodies
        self.undisturbed = undisturbed
        self.lock = threading.Lock()
        self.tokens = 0
        self.moved = [0.0] * len(bodies)  # when each stream had its last event
        self.answers = 0
        self.failures = []
        self.times = []  # of every event, one list per answer
        self.stopping = False
        self.threads = [threading.Thread(target=self.work, args=(index,), daemon=True) for index in range(len(bodies))]
        for thread in self.threads:
            thread.start()

    def note(self, index):
        with self.lock:
            self.tokens += 1
            self.moved[index] = time.monotonic()

    def work(self, index):
        while not self.stopping:
            try:
                result = stream(self.server, self.bodies[index], lambda _: self.note(index))
                wanted = self.undisturbed[index]
                for part in ("error", "tokens", "text", "reasoning", "finish"):
                    expect_equal(result[part], wanted[part], f"{part} of stream {index}")
            except Exception as error:  # any failure of one stream fails the run
                self.failures.append(f"stream {index}: {error}")
                return
            with self.lock:
                self.answers += 1
                self.times.append(result["times"])

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()


def wait_for_tokens(load, count):
    before = load.tokens
    wait_for(lambda: load.tokens >= before + count or load.failures, "tokens", 300)


def wait_for_all(load, since):
    """Every stream has had an event after `since`: none is still waiting for the group of before."""
    wait_for(lambda: min(load.moved) > since or load.failures, "every stream to go on", 300)


def pauses(load, kills):
    """For each kill and each stream that was under way: from the kill to the stream's next event."""
    found = []
    for times in load.times:
        for moment in kills:
            if times[0] < moment < times[-1]:
                found.append(next(time_ for time_ in times if time_ > moment) - moment)
    return found


@test(seconds=3600)
def killed_workers_are_not_killed_streams():
    chance = random.Random(SEED)
    server = Server()
    bodies = requests()
    undisturbed = [stream(server, body) for body in bodies]
    load = Load(server, bodies, undisturbed)
    wait_for_tokens(load, 500)
    quiet_start = time.monotonic()
    wait_for_tokens(load, 2000)
    quiet_end = time.monotonic()
    kills = []
    in_start = 0
    for number in range(KILLS):
        if number % 10 == 9:
            # On the next group's way up, or in its first steps.
            in_start += 1
            time.sleep(chance.uniform(0, 0.3))
        else:
            # The pause of a stream that waits through several kills would say how often we kill.
            wait_for_all(load, kills[-1] if kills else 0)
            time.sleep(chance.uniform(0, 0.5))
        victims = wait_for(lambda: list(server.workers().values()), "workers", 60)
        kills.append(time.monotonic())
        kill(chance.choice(victims))
        if load.failures:
            break
    wait_for_tokens(load, 500)
    load.stop()
    expect_equal(load.failures, [], "failures")
    expect_equal(len(kills), KILLS, "kills")
    found = pauses(load, kills)
    gaps = [later - earlier for times in load.times for earlier, later in zip(times, times[1:])
            if quiet_start < earlier and later < quiet_end]
    print(f"     {KILLS} kills ({in_start} during a start), {load.answers} answers, {load.tokens} tokens, 0 differences")
    print(f"     pause: p50 {percentile(found, 0.5):.2f} s, p99 {percentile(found, 0.99):.2f} s, "
          f"most {max(found):.2f} s, of {len(found)}; undisturbed between two tokens: p50 "
          f"{percentile(gaps, 0.5) * 1000:.1f} ms, p99 {percentile(gaps, 0.99) * 1000:.1f} ms")
    server.stop()


if __name__ == "__main__":
    main()
