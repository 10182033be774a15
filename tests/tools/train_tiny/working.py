"""The written working of a problem, digit by digit, and the sentence that answers it.

Every line has a fixed shape (operands padded with zeros, one column a line, units first), so that
after the operands are copied each character depends on a few others at fixed distances.
"""
from problems import answer

CANNOT = "I can only add and subtract numbers up to 9999 and multiply numbers up to 99."
REASON = {"none": "There is no sum here that I can do.", "large": "A number here is too large for me."}


def digits(number, width):
    """Digits, units first."""
    return [number // 10 ** i % 10 for i in range(width)]


def add_lines(a, b):
    lines, carry = [f"{a:04d}+{b:04d}"], 0
    for x, y in zip(digits(a, 4), digits(b, 4)):
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    lines.append(f"{a + b:05d}")
    return lines


def subtract_lines(a, b):
    signs = ["=" if x == y else "<" if x < y else ">" for x, y in zip(digits(a, 4), digits(b, 4))][::-1]
    pairs = zip(f"{a:04d}", signs, f"{b:04d}")
    verdict = next((s for s in signs if s != "="), "=")
    high, low = max(a, b), min(a, b)
    lines = [f"{a:04d}-{b:04d}", ",".join(x + s + y for x, s, y in pairs) + ":" + verdict, f"{high:04d}-{low:04d}"]
    borrow = 0
    for x, y in zip(digits(high, 4), digits(low, 4)):
        rest = x - y - borrow
        lines.append(f"{x}-{y}-{borrow}={rest % 10},{int(rest < 0)}")
        borrow = int(rest < 0)
    lines.append(f"{'-' if a < b else '+'}{high - low:04d}")
    return lines


def multiply_lines(a, b):
    lines = [f"{a:02d}*{b:02d}"]
    for y in digits(b, 2):
        carry = 0
        for x in digits(a, 2):
            total = x * y + carry
            lines.append(f"{x}*{y}+{carry}={total:02d}")
            carry = total // 10
    return lines + add_lines(a * (b % 10), a * (b // 10) * 10)


LINES = {"+": add_lines, "-": subtract_lines, "*": multiply_lines}


def thought(op, a, b):
    return "\n".join(LINES[op](a, b)) + "\n"


def sentence(op, a, b):
    return f"{a} {op} {b} = {answer(op, a, b)}"
