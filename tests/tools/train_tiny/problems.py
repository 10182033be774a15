"""Arithmetic problems, the ways of asking them, and the split into training and held-out.

A problem is (op, a, b): '+' and '-' on 0..9999, '*' on 0..99. Which problems are held out is
decided by a hash of the problem alone, so no wording of a held-out problem is ever trained on.
"""
import hashlib
import random

LIMIT = {"+": 9999, "-": 9999, "*": 99}
HELD_OUT_SHARE = 10  # one problem in ten

FORMS = {
    "+": [
        "What is {a} + {b}?", "What is {a}+{b}?", "{a} + {b} = ?", "{a}+{b}=?", "{a} + {b}", "{a}+{b}",
        "{a}+{b}=", "{a} + {b} =", "Compute {a} + {b}.", "Compute {a}+{b}", "Calculate {a} + {b}.",
        "What is {a} plus {b}?", "{a} plus {b}", "Add {a} and {b}", "Add {a} and {b}.",
        "Add {b} to {a}.", "Please add {a} and {b}.", "What's {a} + {b}?", "How much is {a} + {b}?",
        "What is the sum of {a} and {b}?", "Find the sum of {a} and {b}.", "Please compute {a} + {b}.",
        "Evaluate {a} + {b}.", "Solve: {a} + {b}", "Can you tell me what {a} + {b} is?",
        "What does {a} + {b} equal?", "Hi, what is {a} + {b}?",
    ],
    "-": [
        "What is {a} - {b}?", "What is {a}-{b}?", "{a} - {b} = ?", "{a}-{b}=?", "{a} - {b}", "{a}-{b}",
        "{a}-{b}=", "{a} - {b} =", "Compute {a} - {b}.", "Compute {a}-{b}", "Calculate {a} - {b}.",
        "What is {a} minus {b}?", "{a} minus {b}", "Subtract {b} from {a}.", "Subtract {b} from {a}",
        "Take {b} away from {a}.", "Please subtract {b} from {a}.", "What's {a} - {b}?",
        "How much is {a} - {b}?", "What is {a} \u2212 {b}?", "Please compute {a} - {b}.",
        "Evaluate {a} - {b}.", "Solve: {a} - {b}", "Can you tell me what {a} - {b} is?",
        "What does {a} - {b} equal?", "Hi, what is {a} - {b}?",
    ],
    "*": [
        "What is {a} * {b}?", "What is {a}*{b}?", "{a} * {b} = ?", "{a}*{b}=?", "{a} * {b}", "{a}*{b}",
        "{a}*{b}=", "{a} * {b} =", "{a} x {b}", "{a}x{b}", "{a} x {b} = ?", "Compute {a} x {b}.",
        "Compute {a} * {b}.", "Compute {a}*{b}", "Calculate {a} * {b}.", "What is {a} times {b}?",
        "{a} times {b}", "Multiply {a} by {b}.", "Multiply {a} and {b}", "Please multiply {a} by {b}.",
        "What's {a} * {b}?", "What is {a} x {b}?", "How much is {a} * {b}?",
        "What is {a} multiplied by {b}?", "What is the product of {a} and {b}?",
        "Find the product of {a} and {b}.", "What is {a} \u00d7 {b}?", "{a} \u00d7 {b} = ?",
        "Please compute {a} * {b}.", "Evaluate {a} * {b}.", "Solve: {a} * {b}",
        "Can you tell me what {a} * {b} is?", "What does {a} * {b} equal?", "Hi, what is {a} * {b}?",
    ],
}

# Asked of the model, but nothing it can do: it says so.
BEYOND = [
    "What is {a} / {b}?", "{a} / {b} = ?", "What is {a} divided by {b}?", "Divide {a} by {b}.",
    "What is {a} ^ {b}?", "What is {a} + {b} + {c}?", "{a}+{b}-{c}", "What is {a} * {b} * {c}?",
    "{a} - {b} - {c} = ?", "What is {a} squared?", "Is {a} a prime number?", "{a}", "What is {a}?",
]


def answer(op, a, b):
    return a + b if op == "+" else a - b if op == "-" else a * b


def held_out(op, a, b):
    digest = hashlib.sha256(f"{a}{op}{b}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % HELD_OUT_SHARE == 0


def draw_number(rng, limit):
    """A number whose count of digits is spread out, so that short ones are not rare."""
    digits = rng.choices((1, 2, 3, 4), (2, 3, 4, 5))[0] if limit > 99 else rng.choices((1, 2), (1, 4))[0]
    low = 0 if digits == 1 else 10 ** (digits - 1)
    return rng.randint(low, min(limit, 10 ** digits - 1))


def draw(rng, want_held_out=False):
    """A random problem from one side of the split."""
    while True:
        op = rng.choices("+-*", (30, 38, 32))[0]
        a = draw_number(rng, LIMIT[op])
        b = draw_number(rng, LIMIT[op])
        if op != "*" and rng.random() < 0.1:  # near neighbours: long borrows, equal digits
            b = min(LIMIT[op], max(0, a + rng.randint(-12, 12)))
        if held_out(op, a, b) == want_held_out:
            return op, a, b


def ask(rng, op, a, b):
    """One wording of a problem, sometimes in lower case or with stray white space."""
    text = rng.choice(FORMS[op]).format(a=a, b=b)
    roll = rng.random()
    if roll < 0.08:
        text = text.lower()
    elif roll < 0.12:
        text = text.rstrip("?.")
    roll = rng.random()
    if roll < 0.08:
        text += rng.choice((" ", "\n", "  ", " \n", "\n\n"))
    elif roll < 0.10:
        text = " " + text
    return text


def ask_beyond(rng):
    """A question that the model is to decline, and why: 'large' or 'none'."""
    if rng.random() < 0.5:
        op = rng.choice("+-*")
        top = 10 ** (rng.randint(3, 5) if op == "*" else rng.randint(5, 7)) - 1
        big = rng.randint(LIMIT[op] + 1, top)
        other = rng.randint(0, rng.choice((9, 99, 999, top)))
        a, b = (big, other) if rng.random() < 0.5 else (other, big)
        return ask(rng, op, a, b), "large"
    numbers = {k: draw_number(rng, 9999) for k in "abc"}
    return rng.choice(BEYOND).format(**numbers), "none"


def held_out_set(count, seed):
    """The committed test set: distinct held-out problems, each in one wording."""
    rng = random.Random(seed)
    seen, rows = set(), []
    while len(rows) < count:
        problem = draw(rng, want_held_out=True)
        if problem in seen:
            continue
        seen.add(problem)
        rows.append({"question": ask(rng, *problem), "answer": answer(*problem)})
    return rows
