"""`backend: cuda` from the command line to the answer, with the cpu backend in the plug-in's place
(tests/plugin/cpu_as_cuda.c): four cards, of which 1 is a V100 and 3 is not served."""

import os

from support import PROGRAM, Server, Skip, answer_of, expect, expect_equal, main, run, test

PLUGIN = os.path.join(os.path.dirname(PROGRAM), "tests", "cpu_as_cuda.so")
CARD = ("configs/cpu-x1.yaml", "--set", "backend=cuda")


def use(path):
    if not os.access(PLUGIN, os.R_OK):
        raise Skip(f"{PLUGIN} is not there: build the target all")
    os.environ["TANDEM_PLUGIN"] = path


@test
def cards_are_listed():
    use(PLUGIN)
    code, out, errors = run("probe")
    expect_equal(code, 0, "exit code")
    expect_equal([line[:19] for line in out.splitlines()], [f"card {i}: Test Card {i}" for i in range(3)], "cards")
    expect("has no code for card 3" in errors, errors)
    use("/nowhere.so")
    code, out, errors = run("probe")
    expect_equal((code, out), (1, ""), "exit code and output")
    expect("/nowhere.so cannot be read" in errors and "beside the program" in errors, errors)


@test
def impossible_cards_are_refused():
    use(PLUGIN)
    for arguments, part in ((["devices=[9]"], "--set devices: needs 1 card, but there is no card 9"),
                            (["devices=[3]"], "has no code for card 3"),
                            (["devices=[0, 1]"], "names 2 devices, but tp 1 x replicas 1 needs 1"),
                            (["devices=[2, 1]", "tp=2"], "cannot mix Test Card 2 (sm_90) with Test Card 1 (sm_70)"),
                            (["devices=[1]", "dtype=bfloat16"], "--set dtype: Test Card 1 (sm_70) does not compute"),
                            (["memory_limit_gib=0.001"], "raise memory_limit_gib")):
        flags = [flag for argument in arguments for flag in ("--set", argument)]
        code, out, errors = run("config", "check", *CARD, *flags)
        expect_equal((code, out), (1, ""), f"exit code and output of {arguments}")
        expect(part in errors, errors)
    expect_equal(run("config", "check", *CARD, "--set", "devices=[2]")[0], 0, "exit code")


@test
def a_card_gives_the_cpus_answers():
    use(PLUGIN)
    server = Server(*CARD[1:], "--set", "devices=[2]", config=CARD[0])
    for part in ("1 x cuda\n", "(Test Card 2)", "plan of the rank", "the card counts", " s: plan ", "GB/s a rank"):
        expect(part in server.errors(), f"{part}: {server.errors()}")
    expect_equal(answer_of(server.chat("What is 407 - 1295?")["message"]["content"]), "-888", "the answer")
    server.stop()


if __name__ == "__main__":
    main()
