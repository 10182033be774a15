"""The official `openai` Python client against a running server, and every reply against OpenAI's own schema.

The client needs the package `openai`, the schema check `jsonschema`, `PyYAML` and the contract openai-openapi.yaml
beside the checkout; without them these tests are skipped."""

import json
import os
import threading

from support import ROOT, Server, Skip, answer_of, expect, expect_equal, main, test, wait_for

CONTRACT = os.path.join(ROOT, "..", "shared", "contracts", "openai-openapi.yaml")
QUESTION = "What is 407 - 1295?"
ANSWER = "-888"
TALK = {"model": "tandem-r1-tiny", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


def client_of(server, **options):
    try:
        import openai
    except ImportError:
        raise Skip("the Python package openai is not installed") from None
    return openai, openai.OpenAI(base_url=server.url + "/v1", api_key="none", **{"max_retries": 0, **options})


def idle(server):
    metrics = server.metrics()
    return all(metrics[name] == 0 for name in ("vllm:num_requests_running", "vllm:num_requests_waiting",
                                               "vllm:kv_cache_usage_perc", "tandem_journal_used_bytes", "tandem_calls"))


@test(seconds=180)
def the_official_client_is_at_home():
    server = Server()
    openai, client = client_of(server)

    expect_equal([model.id for model in client.models.list()], ["tandem-r1-tiny"], "models")
    expect_equal(client.models.retrieve("tandem-r1-tiny").object, "model", "a model")

    reply = client.chat.completions.create(**TALK)
    expect_equal(answer_of(reply.choices[0].message.content), ANSWER, "the answer")
    expect_equal(reply.choices[0].finish_reason, "stop", "finish_reason")
    expect(reply.choices[0].message.reasoning_content, "no reasoning")
    expect_equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens, "usage")
    expect(0 < reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.completion_tokens, "reasoning tokens")

    content, reasoning, finishes, usage = "", "", [], None
    for chunk in client.chat.completions.create(**TALK, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            finishes += [choice.finish_reason] if choice.finish_reason else []
    expect_equal(content, reply.choices[0].message.content, "the streamed text")
    expect_equal(reasoning, reply.choices[0].message.reasoning_content, "the streamed reasoning")
    expect_equal(finishes, ["stop"], "finish_reason")
    expect_equal(usage.completion_tokens, reply.usage.completion_tokens, "the streamed usage")

    with client.chat.completions.stream(**TALK) as events:  # the client's own accumulator
        final = events.get_final_completion()
    expect_equal(final.choices[0].message.content, content, "the accumulated text")

    logged = client.chat.completions.create(**TALK, logprobs=True, top_logprobs=5)
    tokens = logged.choices[0].logprobs.content
    expect_equal(len(tokens), logged.usage.completion_tokens - 1, "log-probabilities, the end's left out")
    text = b"".join(bytes(token.bytes) for token in tokens).decode()
    expect_equal(text, reasoning + "</think>\n\n" + content, "the tokens' text")
    expect(all(token.logprob == token.top_logprobs[0].logprob and len(token.top_logprobs) == 5 for token in tokens),
           "greedy takes the most probable")

    loose = {"model": "tandem-r1-tiny", "prompt": "the token", "temperature": 2, "n": 3, "seed": 11, "max_tokens": 40}
    texts = [choice.text for choice in client.completions.create(**loose).choices]
    expect_equal(len(set(texts)), 3, "different choices")
    expect_equal(texts, [choice.text for choice in client.completions.create(**loose).choices], "the same seed")

    completion = client.completions.create(model="tandem-r1-tiny", prompt=["7", [5, 6]], max_tokens=4, logprobs=2)
    expect_equal([choice.index for choice in completion.choices], [0, 1], "two prompts")
    expect_equal(len(completion.choices[0].logprobs.tokens), 4, "log-probabilities of a completion")

    stopped = client.chat.completions.create(**TALK, stop=["888"])
    expect("888" not in stopped.choices[0].message.reasoning_content + stopped.choices[0].message.content, "a stop text")
    server.stop()
    del openai


@test(seconds=120)
def the_official_client_sees_typed_errors():
    server = Server()
    openai, client = client_of(server)

    def fails(kind, code, param, **fields):
        try:
            client.chat.completions.create(**{**TALK, **fields})
        except kind as error:
            expect_equal((error.code, error.param), (code, param), "code and param")
            return error
        raise AssertionError(f"{fields} was taken")

    fails(openai.BadRequestError, None, "temperature", temperature=3)
    fails(openai.NotFoundError, "model_not_found", "model", model="gpt-5")
    fails(openai.BadRequestError, "context_length_exceeded", "max_tokens", max_tokens=4096)
    fails(openai.BadRequestError, "context_length_exceeded", "messages",
          messages=[{"role": "user", "content": "17 " * 5000}])
    fails(openai.BadRequestError, "unsupported_parameter", "tools",
          tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    fails(openai.BadRequestError, None, "messages[0].content", messages=[{"role": "user", "content": None}])
    error = fails(openai.BadRequestError, None, "tempo", extra_body={"tempo": 1})
    expect("is no known field" in error.message, error.message)
    try:
        client.post("/nowhere", body={}, cast_to=object)
        raise AssertionError("an unknown path was served")
    except openai.NotFoundError as error:
        expect_equal(error.code, "unknown_path", "code")
    expect_equal(answer_of(client.chat.completions.create(**TALK).choices[0].message.content), ANSWER, "the answer after")
    server.stop()


@test(seconds=180)
def the_official_client_may_cancel():
    server = Server()
    _, client = client_of(server)
    for _ in range(5):
        with client.chat.completions.create(**TALK, stream=True, max_tokens=2000,
                                            extra_body={"ignore_eos": True}) as chunks:
            for _, chunk in zip(range(5), chunks):
                expect(chunk.choices, "an event")
    wait_for(lambda: idle(server), "the cancelled streams' end")

    def give_up():
        with_timeout = client_of(server, timeout=0.2)[1]
        try:
            with_timeout.chat.completions.create(**TALK, max_tokens=3000, extra_body={"ignore_eos": True})
        except Exception:  # the time-out is what is wanted
            return

    threads = [threading.Thread(target=give_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: idle(server), "the end of what nobody waits for")
    expect_equal(answer_of(client.chat.completions.create(**TALK).choices[0].message.content), ANSWER, "the answer after")
    server.stop()


# ---- the schema


def rewrite_nullable(node):
    """The document says 3.1 and writes 3.0's `nullable`, which validators of 3.1 pass over."""
    if isinstance(node, list):
        return [rewrite_nullable(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    node = {key: rewrite_nullable(value) for key, value in node.items()}
    if node.pop("nullable", False) is True:
        if "enum" in node:
            node["enum"] = [*node["enum"], None]
        if isinstance(node.get("type"), str):
            node["type"] = [node["type"], "null"]
        elif "type" not in node:
            return {"anyOf": [node, {"type": "null"}]}
    return node


def validators():
    """One validator for each schema by its name."""
    try:
        import jsonschema
        import yaml
    except ImportError:
        raise Skip("the Python packages jsonschema and PyYAML are not installed") from None
    if not os.path.exists(CONTRACT):
        raise Skip("no openai-openapi.yaml beside the checkout")
    with open(CONTRACT, encoding="utf-8") as file:
        document = rewrite_nullable(yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))

    schemas = document["components"]["schemas"]

    def references(node):
        """Names of the schemas that `node` refers to."""
        if isinstance(node, dict):
            own = [node["$ref"].rpartition("/")[2]] if isinstance(node.get("$ref"), str) else []
            return own + [name for value in node.values() for name in references(value)]
        return [name for entry in node for name in references(entry)] if isinstance(node, list) else []

    def make(name):  # with what it needs only: validators walk the whole document over and over
        needed, pending = {}, [name]
        while pending:
            current = pending.pop()
            if current not in needed:
                needed[current] = schemas[current]
                pending += references(schemas[current])
        return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}",
                                                "components": {"schemas": needed}})
    return make


def check(validator, body, what):
    for error in validator.iter_errors(body):
        raise AssertionError(f"{what}: {'/'.join(map(str, error.absolute_path))}: {error.message[:400]}\n{body}")


def events_of(text):
    parts = text.split("\n\n")
    expect_equal(parts[-2:], ["data: [DONE]", ""], "the end of the stream")
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


@test(seconds=300)
def replies_follow_openais_schema():
    make = validators()
    whole, chunk = make("CreateChatCompletionResponse"), make("CreateChatCompletionStreamResponse")
    text_reply, error_reply = make("CreateCompletionResponse"), make("ErrorResponse")
    broken = {"id": "x", "object": "chat.completion", "created": 1, "model": "m",
              "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "abort"}]}
    expect(not whole.is_valid(broken), "the validator takes anything")
    server = Server()
    variants = [{}, {"n": 2, "temperature": 1}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3},
                {"max_tokens": 3}, {"stop": ["8"]}, {"seed": 5, "top_k": 3}, {"include_reasoning": False}]
    for fields in variants:
        status, _, text = server.request("POST", "/v1/chat/completions", {**TALK, **fields})
        expect_equal(status, 200, text)
        check(whole, json.loads(text), f"chat {fields}")
        for options in (None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
            body = {**TALK, "max_tokens": 60, **fields, "stream": True,
                    **({"stream_options": options} if options else {})}
            status, _, text = server.request("POST", "/v1/chat/completions", body)
            expect_equal(status, 200, text)
            events = events_of(text)
            for event in events:
                check(chunk, event, f"chunk of {fields} {options}")
                expect(options is None or "usage" in event, "with include_usage every chunk has the member")
            if options:
                expect_equal((events[-1]["choices"], events[-1]["usage"] is not None), ([], True), "the last chunk")
    for fields in ({"prompt": "1 + 1"}, {"prompt": ["a", [5, 6]], "n": 2, "echo": True}, {"prompt": "x", "logprobs": 0},
                   {"prompt": "x", "logprobs": 4, "max_tokens": 30}):
        status, _, text = server.request("POST", "/v1/completions", fields)
        expect_equal(status, 200, text)
        check(text_reply, json.loads(text), f"completion {fields}")
        status, _, text = server.request("POST", "/v1/completions", {**fields, "stream": True})
        for event in events_of(text):
            # The document has one schema for replies and chunks, and forgets that OpenAI sends null before the end.
            for choice in event["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
            check(text_reply, event, f"completion chunk {fields}")
    for path, body, wanted in (("/v1/chat/completions", {"messages": []}, 400), ("/v1/x", {}, 404),
                               ("/v1/chat/completions", {**TALK, "model": "y"}, 404),
                               ("/v1/chat/completions", {**TALK, "tools": [1]}, 400)):
        status, _, text = server.request("POST", path, body)
        expect_equal(status, wanted, text)
        check(error_reply, json.loads(text), f"error of {path}")
    _, _, text = server.request("GET", "/v1/models")
    check(make("ListModelsResponse"), json.loads(text), "models")
    _, _, text = server.request("GET", "/v1/models/tandem-r1-tiny")
    check(make("Model"), json.loads(text), "a model")
    server.stop()


if __name__ == "__main__":
    main()
