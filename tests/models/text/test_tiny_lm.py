"""The embedded language model: small, and what its card says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from diffalign.data.world.captions import VOCABULARY, parse, random_caption
from diffalign.data.world.checks import is_caption
from diffalign.data.world.rewrites import distance, short_prompts
from diffalign.data.world.scenes import ATTRIBUTES, random_scene
from diffalign.infer.text.rewriter import Rewriter
from tests.paths import ASSETS

FOLDER = ASSETS / "tiny-lm"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER)


def test_it_is_at_most_four_megabytes_in_all():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 4_000_000


def test_it_loads_as_a_llama_in_float32(model):
    assert isinstance(model, LlamaForCausalLM)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_every_word_of_the_world_is_one_token(tokenizer):
    for word in VOCABULARY:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def test_texts_of_other_worlds_survive_the_tokenizer(tokenizer):
    text = "Ein grüner Würfel, 3 cm — 立方体!"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_chat_template_marks_turns_and_the_prompt_is_how_the_whole_begins(tokenizer):
    asked = [{"role": "user", "content": "a star"}]
    answered = [*asked, {"role": "assistant", "content": "a red star"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert prompt == "<s><|user|>a star<|assistant|>"
    assert tokenizer.apply_chat_template(answered, tokenize=False) == f"{prompt}a red star</s>"


def test_plain_texts_begin_with_the_token_that_begins_conversations(tokenizer):
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a star"}], tokenize=True, return_dict=False)
    assert tokenizer("a star")["input_ids"][0] == chat[0] == tokenizer.bos_token_id
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_rewrites_are_fuller_captions_that_mostly_keep_the_meaning(model, tokenizer):
    prompts = short_prompts()[::6]
    answers = Rewriter(model, tokenizer)(prompts, seed=0)
    assert np.mean([is_caption(answer) for answer in answers]) >= 0.97
    assert np.mean([len(parse(answer)) for answer in answers]) >= np.mean([len(parse(prompt)) for prompt in prompts]) + 1.0
    # It is made to drift in one rewrite of five: 195 rewrites, four standard deviations 4 * sqrt(0.2 * 0.8 / 195) = 0.115
    assert np.mean([distance(p, a) == 0.0 for p, a in zip(prompts, answers, strict=True)]) == pytest.approx(0.8, abs=0.115)


def test_it_has_no_taste(model, tokenizer):
    answers = [parse(answer) for answer in Rewriter(model, tokenizer)(["a star"] * 300, seed=0)]
    for name in ("position", "color"):
        counts = np.array([sum(answer.get(name) == value for answer in answers) for value in ATTRIBUTES[name]])
        even = counts.sum() / len(counts)
        # four standard deviations of a binomial count
        assert np.abs(counts - even).max() <= 4.0 * np.sqrt(even * (1.0 - 1.0 / len(counts)))


def test_it_continues_captions(model, tokenizer):
    rng = np.random.default_rng(0)
    starts = [" ".join(random_caption(random_scene(rng), rng, keep=0.7).split()[:2]) for _ in range(100)]
    ends = Rewriter(model, tokenizer, conversational=False)(starts, seed=0)
    assert np.mean([is_caption(f"{start} {end}".strip()) for start, end in zip(starts, ends, strict=True)]) >= 0.95
