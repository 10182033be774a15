"""What the configurations for cards say of the R1 distills, against the plan that the program makes for such cards
(tests/plugin/cpu_as_cuda.c shows cards of any size)."""

import os
import re

from support import PROGRAM, ROOT, Skip, expect, expect_equal, main, run, test

PLUGIN = os.path.join(os.path.dirname(PROGRAM), "tests", "cpu_as_cuda.so")
MODELS = os.path.join(ROOT, "configs", "models")
BY_SIZE = ["Qwen-1.5B", "Qwen-7B", "Llama-8B", "Qwen-14B", "Qwen-32B", "Llama-70B"]

# Compute capability and the MiB that cudaMemGetInfo gives as the card's total.
CARDS = {"v100-32g": (70, 32510), "a100-40g": (80, 40335), "a100-80g": (80, 81037), "h100": (90, 81079),
         "h200": (90, 143155)}


def topologies():
    """(name, number of cards, kind of card) of each configuration for cards."""
    for file in sorted(os.listdir(os.path.join(ROOT, "configs"))):
        match = re.fullmatch(r"((?!cpu)[\w-]+)-x(\d)\.yaml", file)
        if match:
            yield file, int(match[2]), match[1]


def plan(file, kind, model, *arguments):
    """(exit code, GiB of weights a rank, tokens of KV, standard error) of `tandem config check` with that model."""
    if not os.access(PLUGIN, os.R_OK):
        raise Skip(f"{PLUGIN} is not there: build the target all")
    os.environ["TANDEM_PLUGIN"] = PLUGIN
    os.environ["TEST_CARD"] = "{}, {}".format(*CARDS[kind])
    code, _, errors = run("config", "check", f"configs/{file}", "--model", f"{MODELS}/DeepSeek-R1-Distill-{model}",
                          "--set", "load_format=dummy", "--set", f"tokenizer={MODELS}/tandem-r1-tiny", *arguments)
    del os.environ["TEST_CARD"]
    numbers = re.search(r"weights ([\d.]+) GiB, KV [\d.]+ GiB \((\d+) tokens\)", errors)
    return code, float(numbers[1]) if numbers else 0, int(numbers[2]) if numbers else 0, errors


def comment_of(file):
    """The comment at the head of a configuration, as one line."""
    with open(os.path.join(ROOT, "configs", file)) as text:
        return text.read().split("\n#\n")[0].replace("\n# ", " ")


@test(seconds=120)
def every_topology_names_the_largest_model_that_fits():
    checked = list(topologies())
    expect_equal(len(checked), 10, "configurations for cards")
    for file, _, kind in checked:
        comment = comment_of(file)
        named = re.search(r"the largest that fits is DeepSeek-R1-Distill-([\w.-]+) \(([\d.]+) GiB of weights(?: a card)?; "
                          r"room for about ([\d,]+) tokens\)", comment)
        expect(named, f"{file}: {comment}")
        refused = re.findall(r"([\w.-]+) \([\d.]+ GiB(?: a card)?\)(?= and| do)", comment)
        plans = {model: plan(file, kind, model) for model in BY_SIZE}
        fitting = [model for model in BY_SIZE if plans[model][0] == 0]
        expect_equal(fitting, BY_SIZE[:BY_SIZE.index(named[1]) + 1], f"{file}: models that fit")
        expect_equal(refused, [model for model in BY_SIZE if model not in fitting], f"{file}: models that do not")
        for model in refused:
            expect("of weights" not in plans[model][3] and "GiB allowed" in plans[model][3], plans[model][3])
        _, weights, tokens, _ = plans[named[1]]
        expect(abs(weights - float(named[2])) < 0.15, f"{file}: {weights} GiB of weights")
        claimed = int(named[3].replace(",", ""))
        expect(abs(tokens - claimed) < claimed * 0.1, f"{file}: room for {tokens} tokens")


@test
def a_limit_makes_a_small_card_of_a_large_one():
    for gib in (32, 40):
        code, _, _, errors = plan("h100-x1.yaml", "h100", "Llama-8B", "--set", f"memory_limit_gib={gib}")
        planned = float(re.search(r"plan of the rank: ([\d.]+) GiB", errors)[1])
        expect_equal(code, 0, f"exit code ({errors})")
        context = 527 / 1024
        expect(gib - 0.1 < planned + context < gib + 0.05, f"{planned} GiB planned within {gib}")
    code, _, _, errors = plan("h100-x1.yaml", "h100", "Llama-8B", "--set", "memory_limit_gib=80")
    expect(code == 1 and "the card has 78.66 GiB free" in errors, f"{code} {errors}")


if __name__ == "__main__":
    main()
