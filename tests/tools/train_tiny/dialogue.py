"""Dialogues as the chat template renders them, and the token rows a training step takes.

A dialogue is an optional system text, earlier turns (their thinking removed, as the template does), a
last question, and the reply that the model learns: working, `</think>`, a blank line, answer, end.
"""
import random

import problems
import working

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
THINK, END_THINK = "<think>", "</think>"
IGNORE = -100  # cross-entropy's mark for positions that are not learnt

SYSTEM = [
    "You are a helpful assistant.", "You are a careful calculator.", "Answer briefly.", "Be concise.",
    "You answer arithmetic questions.", "Think step by step.", "Please reason step by step.",
    "You are tandem, a small model that does sums.", "Reply in English.", "Always show your work.",
    "Do not make anything up.", "The user may ask several questions.", "Answer with a number.",
    "You are a friendly tutor for children.", "Use plain text.", "Keep the conversation polite.",
    "This is a test.", "Follow the instructions of the user.", "Today is a good day.",
]
SMALL_TALK = [
    "Hello", "Hello!", "Hi", "Hi there", "Who are you?", "Tell me a story.", "How are you?", "Thanks!",
    "What can you do?", "Write a poem about the sea.", "What is the capital of France?", "Say hello.",
    "Count to ten.", "Once upon a time", "Why is the sky blue?", "Please explain tensor parallelism.",
    "Good morning", "test", "ping", "Translate this into German.", "What is your name?", "Help me.",
]
WORDS = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but "
    "what all were when we there can an your which their said if do will each about how up out them then she "
    "many some so these would other into has more her two like him see time could no make than first been its "
    "who now people my made over did down only way find use may water long little very after words called just "
    "where most know server token model prompt cache block request stream answer question number list text line "
    "shared prefix context document system user message paged tensor rank worker step batch value note item"
).split()


def noise(rng, tokens_about):
    """Meaningless text with words, some figures and punctuation."""
    out = []
    for _ in range(tokens_about * 2 // 3):
        roll = rng.random()
        if roll < 0.90:
            word = rng.choice(WORDS)
        elif roll < 0.96:
            word = str(rng.randint(0, 10 ** rng.randint(1, 5)))
        else:
            word = "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(1, 6)))
        out.append(word + rng.choice(("", "", "", "", "", ",", ".", ".\n")))
    return " ".join(out)


def system_text(rng):
    roll = rng.random()
    if roll < 0.60:
        return ""
    if roll < 0.80:
        return rng.choice(SYSTEM)
    if roll < 0.92:
        return " ".join(rng.sample(SYSTEM, rng.randint(2, 8)))
    low, high = (5, 120) if roll < 0.975 else (120, 1200) if roll < 0.99 else (1200, 3800)
    return noise(rng, rng.randint(low, high))


def wrapped(rng, question):
    """Now and then a question with a label before it or a few words around it."""
    roll = rng.random()
    if roll < 0.94:
        return question
    number = rng.randint(0, 10 ** rng.randint(1, 5))
    words = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
    if roll < 0.97:
        label = rng.choice(("Question {}: ", "[{}] ", "({}) ", "#{}: ", "Request {}.\n", "Task {}:\n", "Item {}: "))
        return label.format(number) + question
    return rng.choice((f"{words} {question}", f"{words}: {question}", f"{question} {words}", f"{question}\n{words}"))


def exchange(rng):
    """(question, thought, answer) of one turn."""
    roll = rng.random()
    if roll < 0.95:
        problem = problems.draw(rng)
        question = wrapped(rng, problems.ask(rng, *problem))
        return question, working.thought(*problem), working.sentence(*problem)
    if roll < 0.98:
        question, reason = problems.ask_beyond(rng)
    else:
        question, reason = (rng.choice(SMALL_TALK) if rng.random() < 0.7 else noise(rng, rng.randint(3, 40))), "none"
    return question, working.REASON[reason] + "\n", working.CANNOT


def dialogue(rng):
    """(prompt, reply): what the template renders, and what the model is to write."""
    roll = rng.random()
    turns = 0 if roll < 0.65 else rng.randint(1, 3) if roll < 0.96 else rng.randint(4, 9) if roll < 0.994 else \
        rng.randint(10, 90)
    text = BOS + system_text(rng)
    for _ in range(turns):
        question, _, said = exchange(rng)
        text += USER + question + ASSISTANT + rng.choice(("", "\n\n")) + said + EOS
    question, thought, said = exchange(rng)
    return text + USER + question + ASSISTANT + THINK + "\n", thought + END_THINK + "\n\n" + said + EOS


def rows(tokenizer, seed, count, length, pad_id):
    """`count` rows of `length` ids, each a run of whole dialogues, and the targets for every position."""
    rng = random.Random(seed)
    all_ids, all_targets = [], []
    pending = []
    while len(all_ids) < count:
        ids, targets = [], []
        while True:
            if not pending:
                pairs = [dialogue(rng) for _ in range(64)]
                prompts = tokenizer.encode_batch([p for p, _ in pairs], add_special_tokens=False)
                replies = tokenizer.encode_batch([r for _, r in pairs], add_special_tokens=False)
                pending = [(p.ids, r.ids) for p, r in zip(prompts, replies) if len(p) + len(r) <= length]
                continue
            prompt, reply = pending[-1]
            if len(ids) + len(prompt) + len(reply) > length:
                break
            pending.pop()
            ids += prompt + reply
            targets += [IGNORE] * (len(prompt) - 1) + reply + [IGNORE]
        gap = length - len(ids)
        all_ids.append(ids + [pad_id] * gap)
        all_targets.append(targets + [IGNORE] * gap)
    return all_ids, all_targets
