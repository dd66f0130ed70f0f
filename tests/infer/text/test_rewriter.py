"""Texts from a language model: draws that belong to their seeds, and what a pipeline is given."""

from __future__ import annotations

import pytest
import torch

from diffalign.core.errors import ConfigError
from diffalign.infer.text.rewriter import GumbelNoise, Rewriter
from tests.models.text import models

PROMPTS = ["a red circle", "Given a word, write another word that has the same meaning", "the sum of 5"]


def sharp():
    """Return a model that is sure of its next token, so that the prompt decides it, and not the draw alone."""
    made = models.llama()
    with torch.no_grad():
        made.lm_head.weight *= 100.0
    return made


@pytest.fixture(scope="module")
def model():
    return sharp()


def test_what_is_drawn_comes_as_often_as_its_probability_says():
    probabilities = torch.tensor([0.7, 0.2, 0.1])
    drawn = GumbelNoise(range(4000), 1.0)(torch.zeros(4000, 1), probabilities.log().expand(4000, 3)).argmax(dim=1)
    # four standard deviations of the most uncertain one: 4 * sqrt(0.7 * 0.3 / 4000) = 0.029
    assert torch.bincount(drawn, minlength=3) / 4000 == pytest.approx(probabilities, abs=0.029)


def test_a_temperature_of_one_half_squares_the_odds():
    scores = torch.tensor([0.7, 0.2, 0.1]).log().expand(4000, 3)
    drawn = GumbelNoise(range(4000), 0.5)(torch.zeros(4000, 1), scores).argmax(dim=1)
    # 0.49 : 0.04 : 0.01 of 0.54
    assert torch.bincount(drawn, minlength=3) / 4000 == pytest.approx(torch.tensor([0.49, 0.04, 0.01]) / 0.54, abs=0.029)


def test_temperature_zero_takes_the_likeliest_token_always(model):
    tokens = models.tokenizer()
    ids = tokens("a red circle")["input_ids"]
    own = list(ids)
    for _ in range(5):
        own.append(int(model(torch.tensor([own])).logits[0, -1].argmax()))
    expected = tokens.decode(own[len(ids) :], skip_special_tokens=True).strip()
    rewriter = Rewriter(model, tokens, conversational=False)
    assert rewriter("a red circle", temperature=0.0, max_new_tokens=5) == expected
    assert rewriter([PROMPTS[1], "a red circle"], temperature=0.0, max_new_tokens=5)[1] == expected


def test_an_answer_belongs_to_its_seed_and_not_to_its_batch(model):
    rewriter = Rewriter(model, models.tokenizer())
    together = rewriter(PROMPTS, seed=7, max_new_tokens=12)
    assert together == [rewriter(prompt, seed=7 + i, max_new_tokens=12) for i, prompt in enumerate(PROMPTS)]
    assert rewriter(PROMPTS[0], seed=8, max_new_tokens=12) != together[0]


def test_several_answers_to_a_prompt_stand_side_by_side(model):
    rewriter = Rewriter(model, models.tokenizer())
    answers = rewriter(PROMPTS[:2], seed=3, max_new_tokens=6, num_return_sequences=2)
    assert answers == rewriter([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], seed=3, max_new_tokens=6)
    assert rewriter(PROMPTS[0], seed=3, max_new_tokens=6, num_return_sequences=2) == answers[:2]


def test_without_a_seed_every_call_differs_and_the_global_state_stays(model):
    rewriter = Rewriter(model, models.tokenizer())
    before = torch.get_rng_state()
    assert rewriter("a red circle", max_new_tokens=24) != rewriter("a red circle", max_new_tokens=24)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompt_is_a_turn_where_there_is_a_template_unless_the_model_was_not_trained_so(model):
    tokens = models.tokenizer()
    asked = "<|bos|><|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"
    turn = Rewriter(model, tokens)("a red circle", seed=0, max_new_tokens=8)
    bare = models.tokenizer(template=False, bos=False)
    assert turn == Rewriter(model, bare)(asked, seed=0, max_new_tokens=8)
    plain = Rewriter(model, tokens, conversational=False)("a red circle", seed=0, max_new_tokens=8)
    assert plain == Rewriter(model, models.tokenizer(template=False))("a red circle", seed=0, max_new_tokens=8)
    assert plain != turn


def test_a_model_of_conversations_without_a_template_is_refused(model):
    with pytest.raises(ConfigError, match="set `chat_template`"):
        Rewriter(model, models.tokenizer(template=False), conversational=True)


def test_a_tokenizer_without_a_pad_token_answers_alike(model):
    told = {"seed": 5, "max_new_tokens": 10}
    padless = Rewriter(model, models.tokenizer(pad=False))(PROMPTS, **told)
    assert padless == Rewriter(model, models.tokenizer())(PROMPTS, **told)


def test_a_model_in_training_answers_without_dropout_and_goes_on_training():
    training = sharp()
    for layer in training.model.layers:
        layer.self_attn.attention_dropout = 0.9
    calm = Rewriter(sharp(), models.tokenizer())(PROMPTS, seed=1, max_new_tokens=8)
    assert Rewriter(training.train(), models.tokenizer())(PROMPTS, seed=1, max_new_tokens=8) == calm
    assert training.training


def test_what_is_sampled_to_train_on_is_the_text_of_its_seed_with_the_log_probabilities_of_a_forward_pass(model):
    rewriter = Rewriter(model, models.tokenizer())
    sampled = rewriter.sampled(PROMPTS, [7, 8, 9], max_new_tokens=12)
    assert [own.text for own in sampled] == rewriter(PROMPTS, seed=7, max_new_tokens=12)
    for prompt, own in zip(PROMPTS, sampled, strict=True):
        asked = rewriter.prompt_ids(prompt)
        with torch.no_grad():
            logits = model(torch.cat([torch.tensor(asked), own.ids])[None]).logits[0, len(asked) - 1 : -1]
        expected = logits.log_softmax(dim=-1).gather(1, own.ids[:, None])[:, 0]
        torch.testing.assert_close(own.log_probs, expected, atol=1e-4, rtol=1e-5)


def test_a_sampled_text_ends_with_its_end_and_has_no_padding():
    ending = models.llama(seed=1)
    with torch.no_grad():
        ending.lm_head.weight *= 0.0  # every token is as likely as any other, and one in 320 ends a text
    few = Rewriter(ending, models.tokenizer()).sampled(["a star"] * 64, range(64), max_new_tokens=64)
    ends = [own.ids.tolist().index(2) + 1 if 2 in own.ids else 64 for own in few]
    assert [len(own.ids) for own in few] == [len(own.log_probs) for own in few] == ends
    assert min(ends) < 64
