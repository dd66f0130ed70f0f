"""Why one answer was preferred: what is asked, its log-probability by hand, and data that do not say it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffalign.core.errors import ConfigError, RecordError, TableError
from diffalign.models.text.forward import read
from diffalign.models.text.likelihood import SequenceLikelihood, ld_dpo
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.template import Template
from diffalign.models.text.truncation import Limit
from diffalign.objectives import bind_objective
from diffalign.objectives.with_terms import with_rationale
from diffalign.train.align import train
from tests.models.text.models import llama, tokenizer
from tests.models.text.tables import chat_record, text_record, view_of
from tests.train.test_text_training import config, log
from tests.train.test_text_training import world as world

TEMPLATE = Template(tokenizer())
WHY = {"rationale": " It is short."}
RECORDS = [
    text_record("A word:", " red", " blue and green", number=0, meta=WHY),
    text_record("What?", " seven", " eight", number=1, prob=0.25, meta=WHY),
    text_record("Count:", " one", " two", number=2),
]


def made(folder, records=RECORDS, **options) -> TextPairs:
    return TextPairs(view_of(folder, records), TEMPLATE, Limit(), rationales=True, **options)


def batch_of(pairs: TextPairs):
    return pairs.to_batch([pairs[i, 0] for i in range(len(pairs))])


def decode(ids) -> str:
    return TEMPLATE.tokenizer.decode(ids)


def log_prob(model, prompt, completion) -> float:
    """Return the log-probability of a completion, token by token, from the whole text's logits."""
    with torch.no_grad():
        logits = model(torch.cat([prompt, completion])[None]).logits[0].double()
    return sum(logits[len(prompt) - 1 + i].log_softmax(0)[token].item() for i, token in enumerate(completion))


def test_a_rationale_answers_a_question_in_which_the_preferred_answer_stands_first(tmp_path):
    batch = batch_of(made(tmp_path))
    asked = [decode(own[2]) for own in batch.prompts]
    assert asked[0].index("A word:") < asked[0].index(" red") < asked[0].index(" blue and green")
    assert asked[1].index(" eight") < asked[1].index(" seven")  # the label prefers the second
    assert [decode(own[2]) for own in batch.completions] == [" It is short.<|im_end|>", " It is short.<|im_end|>", " one<|im_end|>"]
    assert batch.rationale is not None
    assert batch.rationale.tolist() == [True, True, False]


def test_in_a_conversation_the_question_is_the_last_turn(tmp_path):
    record = chat_record([("system", "Be brief."), ("user", "What?")], "seven", "eight", meta={"rationale": "It is odd."})
    batch = batch_of(made(tmp_path, [record]))
    question, answer = decode(batch.prompts[0][2]), decode(batch.completions[0][2])
    assert question.startswith("<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?")
    assert question.endswith("<|im_start|>assistant\n")
    assert "seven" in question
    assert answer == "It is odd.<|im_end|>\n"


def test_the_loss_is_that_of_the_pair_plus_the_weighted_likelihood_by_hand(tmp_path):
    model, batch = llama(), batch_of(made(tmp_path))
    likelihood = SequenceLikelihood(read)
    answers = likelihood.score(model, batch)
    scores = likelihood.scores(answers, answers.tokens.detach(), batch)
    by_hand = [log_prob(model, own[2], text[2]) for own, text in zip(batch.prompts, batch.completions, strict=True)]
    assert scores.policy.shape == (3, 2)
    assert scores.rationale is not None
    assert scores.rationale.tolist() == pytest.approx([by_hand[0], by_hand[1], 0.0], rel=1e-5)
    loss = with_rationale(bind_objective({"dpo": {"beta": 0.1}}), weight=0.01)(replace(scores, weight=torch.tensor([1.0, 3.0, 1.0])))
    # the policy is the reference: log 2, and 3 log 2 where the record weighs three times as much
    expected = [math.log(2.0) - 0.01 * by_hand[0], 3.0 * (math.log(2.0) - 0.01 * by_hand[1]), math.log(2.0)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_pair_is_scored_as_without_a_rationale(tmp_path):
    model, batch = llama(), batch_of(made(tmp_path))
    alone = replace(batch, rationale=None, prompts=tuple(p[:2] for p in batch.prompts), completions=tuple(c[:2] for c in batch.completions))
    for likelihood in (SequenceLikelihood(read, needs=frozenset({"kl", "prompt", "activation"})), SequenceLikelihood(read, ld_dpo())):
        one, two = (likelihood.score(model, own) for own in (batch, alone))
        with_it, without = likelihood.scores(one, one, batch), likelihood.scores(two, two, alone)
        torch.testing.assert_close(with_it.policy, without.policy)
        torch.testing.assert_close(with_it.lengths, without.lengths)
        assert (with_it.tokens is None) or with_it.tokens.policy.shape[:2] == (3, 2)


def test_data_without_rationales_and_lists_are_refused_by_name(tmp_path):
    with pytest.raises(TableError, match=r"none of 1 records says why.*column `rationale`"):
        made(tmp_path / "none", RECORDS[2:])
    with pytest.raises(RecordError, match=r"rows.jsonl row 0: 3 candidates; `rationale_weight`.*`pairs`"):
        made(tmp_path / "list", [text_record("a", "b", "c", "d", meta=WHY)])


def test_a_rationale_becomes_likelier_in_training(world, tmp_path):
    rows = [f'{{"prompt": "a {i}", "chosen": " b", "rejected": " c", "rationale": " because"}}\n' for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    own = {"dataset_name": str(tmp_path / "pairs.jsonl"), "rationale_weight": 0.1, "max_train_steps": 2}
    first, last = log(train(config(world, tmp_path / "run", **own)))
    assert last["logps/rationale"] > first["logps/rationale"]
    assert first["loss"] == pytest.approx(math.log(2.0) - 0.1 * first["logps/rationale"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kto": {"beta": 0.1}}}, "`rationale_weight` goes with objectives of pairs"),
        ({"likelihood": "joint"}, "`likelihood` is 'joint'; expected sum, mean or ld_dpo"),
    ],
)
def test_what_has_no_room_for_a_rationale_is_refused(world, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(config(world, tmp_path / "run", rationale_weight=0.1, **changes))
