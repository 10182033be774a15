"""Long run: the accuracy of the embedded model on 2,000 held-out sums, greedy, through the running server with 64
concurrent streams, at TP 1, 2 and 4, with the prefix cache on and off. At least 98 % each; and since a row's bits do
not depend on its neighbours, all answers at one TP are the same with and without the cache."""

import time

from support import Server, answer_of, expect, in_threads, main, sums, test

STREAMS = 64
LEAST = 0.98
# A question alone is shorter than a KV block; behind this text all questions share whole blocks of their prompts.
SYSTEM = "You are a careful calculator. Show your working, check every step, then give the answer."


def ask_all(server, pairs):
    """Answers to all questions, and tokens per second."""
    def ask(question):
        return server.chat(question, messages=[{"role": "system", "content": SYSTEM},
                                               {"role": "user", "content": question}])

    start = time.monotonic()
    choices = in_threads([lambda q=question: ask(q) for question, _ in pairs], STREAMS)
    seconds = time.monotonic() - start
    for choice in choices:
        if isinstance(choice, Exception):
            raise choice
    return [choice["message"] for choice in choices], server.metrics()["vllm:generation_tokens_total"] / seconds


@test(seconds=7200)
def sums_are_right_everywhere():
    pairs = sums(2000)
    for tp in (1, 2, 4):
        answers = {}
        for cache in ("true", "false"):
            server = Server("--set", f"engine.prefix_cache={cache}", config=f"configs/cpu-x{tp}.yaml")
            answers[cache], rate = ask_all(server, pairs)
            right = sum(answer_of(message["content"]) == answer for message, (_, answer) in zip(answers[cache], pairs))
            hits = server.metrics()["vllm:prefix_cache_hits_total"]
            print(f"     TP {tp}, prefix cache {'on ' if cache == 'true' else 'off'}: {right} of {len(pairs)} right "
                  f"({right / len(pairs):.2%}), {rate:.0f} tokens/s, {hits:.0f} tokens from the cache", flush=True)
            expect(right >= LEAST * len(pairs), f"TP {tp}: {right} of {len(pairs)} right")
            expect((hits > 0) == (cache == "true"), f"prefix cache {cache}: {hits} hits")
            server.stop()
        different = sum(a != b for a, b in zip(answers["true"], answers["false"]))
        expect(different == 0, f"TP {tp}: {different} answers differ with and without the prefix cache")


if __name__ == "__main__":
    main()
