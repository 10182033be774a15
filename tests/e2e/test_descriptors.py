"""Who holds which descriptors: /proc/PID/fd of every process against the table in launcher/descriptors.c."""

import collections
import contextlib
import os
import re

from support import ROOT, Server, expect, expect_equal, kill, main, test, wait_for

ROW = re.compile(r'\{HELD_BY_(\w+),\s*"([^"]+)",\s*(COUNT_\w+),\s*"([^"]+)",\s*"([^"]+)"\}')
ANY = float("inf")


def table():
    """Rows (holder, target, count, what, maker) of the source's table."""
    with open(os.path.join(ROOT, "launcher", "descriptors.c")) as file:
        rows = ROW.findall(file.read())
    expect(len(rows) > 10, "the table was not found")
    return rows


def number_of(count, replicas, world):
    return {"COUNT_1": 1, "COUNT_4": 4, "COUNT_REPLICAS": replicas, "COUNT_RANKS": replicas * world,
            "COUNT_IF_GROUP": int(world > 1), "COUNT_IF_GROUPS": replicas if world > 1 else 0, "COUNT_ANY": ANY, "COUNT_OF_DRIVER": 0}[count]


def allowed(holder, replicas, world):
    """(least, most) descriptors of each target; "any number" may be none."""
    bounds = collections.defaultdict(lambda: [0, 0])
    for row_holder, target, count, _, _ in table():
        if row_holder == holder:
            number = number_of(count, replicas, world)
            bounds[target][0] += 0 if number == ANY else number
            bounds[target][1] += number
    return bounds


def held(pid):
    """Targets of the descriptors from 3 on, but for those that are closed while they are looked at."""
    targets = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        if int(entry) > 2:
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return targets


def differences(pid, holder, replicas, world):
    bounds = allowed(holder, replicas, world)
    counts = collections.Counter()
    found = []
    for target in held(pid):
        rule = next((rule for rule in bounds if target.startswith(rule)), None)
        if rule is None:
            found.append(f"{target} is not listed")
        else:
            counts[rule] += 1
    for target, (least, most) in bounds.items():
        if not least <= counts[target] <= most:
            found.append(f"{target}: {counts[target]}, listed are {least} to {most}")
    return found


def check(server, replicas, world, when):
    """Every process is as listed, within a moment: links are under way for a while."""
    def all_differences():
        processes = [(server.pid, "SUPERVISOR"), (server.frontend(), "FRONTEND")]
        processes += [(pid, "WORKER") for pid in server.workers().values()]
        expect_equal(len(processes), 2 + replicas * world, f"processes {when}")
        return {f"{holder} {pid}": found for pid, holder in processes
                if (found := differences(pid, holder, replicas, world))}

    try:
        wait_for(lambda: not all_differences(), "descriptors", 5)
    except AssertionError as error:
        raise AssertionError(f"{when}: {all_differences()}") from error


def is_back(server, dead, count):
    pids = [server.frontend(), *server.workers().values()]
    return None not in pids and dead not in pids and len(pids) == count and server.request("GET", "/ready")[0] == 200


def through_deaths(server, replicas, world):
    check(server, replicas, world, "at the start")
    server.chat("3 + 4 = ?")
    check(server, replicas, world, "after a request")
    for _ in range(3):
        dead = list(server.workers().values())[-1]
        kill(dead)
        wait_for(lambda pid=dead: is_back(server, pid, 1 + replicas * world), "the group")
        check(server, replicas, world, "after a worker's death")
        server.chat("3 + 4 = ?")
    dead = server.frontend()
    kill(dead)

    def is_served():
        try:
            return is_back(server, dead, 1 + replicas * world)
        except OSError:
            return False

    wait_for(is_served, "the front-end")
    check(server, replicas, world, "after the front-end's death")
    server.chat("3 + 4 = ?")
    check(server, replicas, world, "at the end")
    for pid in (server.pid, server.frontend(), *server.workers().values()):
        kinds = collections.Counter(re.sub(r"\d+", "N", target) for target in held(pid))
        name = "supervisor" if pid == server.pid else "front-end" if pid == server.frontend() else "worker"
        print(f"     {name}: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}")
    server.stop()


@test(seconds=120)
def one_rank():
    through_deaths(Server(config="configs/cpu-x1.yaml"), 1, 1)


@test(seconds=120)
def two_ranks():
    through_deaths(Server(config="configs/cpu-x2.yaml"), 1, 2)


@test(seconds=120)
def two_replicas_of_two_ranks():
    through_deaths(Server("--set", "replicas=2", config="configs/cpu-x2.yaml"), 2, 2)


@test
def what_the_supervisor_was_started_with_stays_its_own():
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    server = Server(pass_fds=(write_end,))
    pipe = os.readlink(f"/proc/self/fd/{write_end}")
    expect(pipe in held(server.pid), "the supervisor did not inherit it")
    for pid in (server.frontend(), *server.workers().values()):
        expect(pipe not in held(pid), f"process {pid} inherited it")
    server.stop()
    os.close(read_end)
    os.close(write_end)


if __name__ == "__main__":
    main()
