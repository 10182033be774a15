"""The byte-level BPE tokenizer and the small JSON files of the model directory.

tokenizer.json has the shape of the R1-Distill-Qwen one: the same normalizer, split pattern, byte-level
steps, BOS template and special tokens, over 256 bytes and a few merges learnt from the wordings. The
working itself needs no merges: digits are always single tokens.
"""
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import dialogue
import problems
import working

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (text, special) in id order, with the flags of the R1 distills.
SPECIALS = (
    (dialogue.EOS, True), (dialogue.USER, False), (dialogue.ASSISTANT, False),
    (dialogue.BOS, True), (dialogue.THINK, False), (dialogue.END_THINK, False),
)
ROWS = 512  # embedding rows; the ones past the last token are padding, as in the large models
BASE = ROWS - 16 - len(SPECIALS)  # bytes and merges


def corpus(seed):
    rng = random.Random(seed)
    texts = []
    for _ in range(20000):
        problem = problems.draw(rng)
        texts += [problems.ask(rng, *problem), working.sentence(*problem)]
    for extra in (dialogue.SYSTEM, dialogue.SMALL_TALK, working.REASON.values(), [working.CANNOT] * 3):
        texts += list(extra) * 200
    texts += [" " + word for word in dialogue.WORDS] * 60
    return texts + ["\n\n"] * 100


def build(seed):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.train_from_iterator(corpus(seed), trainers.BpeTrainer(
        vocab_size=BASE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    for text, special in SPECIALS:
        token = AddedToken(text, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    bos = tokenizer.token_to_id(dialogue.BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{dialogue.BOS} $A", pair=f"{dialogue.BOS} $A {dialogue.BOS}:1 $B:1",
        special_tokens=[(dialogue.BOS, bos)])
    return tokenizer


def write_json(directory, name, value):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as out:
        json.dump(value, out, ensure_ascii=False, indent=1)
        out.write("\n")


def save(tokenizer, directory, positions):
    """tokenizer.json, tokenizer_config.json and generation_config.json."""
    bos, eos = tokenizer.token_to_id(dialogue.BOS), tokenizer.token_to_id(dialogue.EOS)
    data = json.loads(tokenizer.to_str())
    # The spelling of the large models' file: empty strings and explicit false where the library says null.
    data["model"].update(continuing_subword_prefix="", end_of_word_suffix="")
    write_json(directory, "tokenizer.json", data)
    with open(os.path.join(os.path.dirname(__file__), "chat_template.jinja"), encoding="utf-8") as file:
        template = file.read()

    def token(text):
        return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True,
                "rstrip": False, "single_word": False}

    write_json(directory, "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": token(dialogue.BOS),
        "clean_up_tokenization_spaces": False, "eos_token": token(dialogue.EOS),
        "model_max_length": positions, "pad_token": token(dialogue.EOS), "unk_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    write_json(directory, "generation_config.json", {
        "bos_token_id": bos, "eos_token_id": eos, "do_sample": False})
