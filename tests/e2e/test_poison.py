"""A model that computes NaN for prompts with one certain token: such a request fails alone, with an error that says why,
while others in the same steps, and those that take over its KV blocks, are answered as ever.

TANDEM_TEST_CONFIG names a configuration other than configs/cpu-x2.yaml, for instance one for cards."""

import json
import os
import shutil
import struct
import tempfile

from support import MODEL, Server, StreamBroken, answer_of, expect, expect_equal, in_threads, main, stream, sums, test

CONFIG = os.environ.get("TANDEM_TEST_CONFIG", "configs/cpu-x2.yaml")
POISON = 31  # the id of "@", which no sum holds
TEXT = "is not a finite number"


def poisoned_copy(folder):
    """The embedded model with an embedding row of NaN. Its head is a matrix of its own, so no other id is touched."""
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    with open(os.path.join(folder, "model.safetensors"), "r+b") as file:
        header_bytes = struct.unpack("<Q", file.read(8))[0]
        tensor = json.loads(file.read(header_bytes))["model.embed_tokens.weight"]
        expect_equal(tensor["dtype"], "BF16", "the dtype")
        row_bytes = tensor["shape"][1] * 2
        file.seek(8 + header_bytes + tensor["data_offsets"][0] + POISON * row_bytes)
        file.write(struct.pack("<H", 0x7FC0) * tensor["shape"][1])


def ask_poisoned(server, streams, **fields):
    """Returns the error of a question that holds the token."""
    body = {"messages": [{"role": "user", "content": "What is 12 @ 34?"}], "temperature": 0, **fields}
    if streams:
        try:
            return stream(server, body)["error"]["message"]
        except StreamBroken as broken:  # it failed before its first byte
            return str(broken)
    status, _, text = server.request("POST", "/v1/chat/completions", body)
    expect_equal(status, 500, f"status ({text[:300]})")
    return json.loads(text)["error"]["message"]


def expect_sums(server, pairs):
    answers = in_threads([lambda q=question: server.chat(q) for question, _ in pairs], len(pairs))
    for answer, (question, right) in zip(answers, pairs):
        if isinstance(answer, Exception):
            raise answer
        expect_equal(answer_of(answer["message"]["content"]), right, question)


@test(seconds=180)
def a_prompt_of_nan_fails_alone():
    pairs = sums(48)
    with tempfile.TemporaryDirectory() as folder:
        poisoned_copy(folder)
        # Few KV blocks, so that those of failed requests are soon somebody else's.
        server = Server("--model", folder, "--set", "engine.max_num_seqs=16", config=CONFIG)
        jobs = []
        for index, (question, right) in enumerate(pairs):
            jobs.append(lambda q=question, r=right: expect_equal(answer_of(server.chat(q)["message"]["content"]), r, q))
            if index % 4 == 0:
                jobs.append(lambda i=index: expect(TEXT in ask_poisoned(server, i % 8 == 0, seed=i,
                                                                        temperature=0.7 * (i % 3 == 0))))
        for result in in_threads(jobs, 24):
            if isinstance(result, Exception):
                raise result
        # Nothing of it is left, in the prefix cache or in blocks that are used again.
        for _ in range(2):
            expect(TEXT in ask_poisoned(server, False))
            expect_sums(server, pairs[:16])
        server.stop()


if __name__ == "__main__":
    main()
