"""The small vision-language model is taught the questions that the scorer asks, token for token, and its folder loads in the scorer."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from diffalign.data.world.captions import parse
from diffalign.data.world.scenes import Scene, render
from diffalign.models.users.vlm import chat, encoded
from diffalign.rewards.shards import audit_of
from diffalign.rewards.table import load_scorer


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend("scripts")
    return importlib.import_module("pretrain_tiny_vlm")


def test_lessons_are_the_scorers_questions_and_the_folder_loads(script, tmp_path):
    torch.manual_seed(0)
    rng, processor = np.random.default_rng(0), script.new_processor()
    scene = Scene("star", "red", "large", "left", "gray")
    picture, other = render(scene, rng), render(Scene("ring", "red", "large", "left", "gray"), rng)
    code = script.code_of(scene.attributes())
    pool = script.Pool(torch.zeros(1, script.WIDTH), np.array([code]), {code: [0]})
    for kind, words in script.QUESTIONS.items():
        text, rows, chances = script.lesson(pool, kind, rng)
        prompt = next(line.split('"')[1] for line in text.splitlines() if line.startswith("Prompt: "))
        assert parse(prompt).items() <= scene.attributes().items()
        assert chances.sum() == pytest.approx(1.0)
        assert chances[-1] == (1.0 if kind[0] == "pointwise" else 0.5 if kind[1] == "logprobs" else 0.0)  # the pictures are equally good
        content = [*({"type": "image"} for _ in rows), {"type": "text", "text": words.question(prompt)}]
        asked = encoded(processor, [chat(processor, content)], [[picture] * len(rows)]).input_ids[0].tolist()
        assert asked == processor.tokenizer(text).input_ids
        assert len(asked) == 2 + 5 * len(rows) + 2 + len(prompt.split()) + 1  # the sentences around the prompt are a token each
    network = script.new_model(processor)
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    spec = {"model": str(tmp_path), "aspects": ["alignment"], "max_tokens": 2, "cache": str(tmp_path / "judges.db")}
    scorer = load_scorer({"vlm": spec | {"protocol": "pairwise"}})
    assert scorer([picture, other], ["a red star"] * 2).shape == (2,)
    assert sum(audit_of(scorer)[outcome] for outcome in ("answered", "unread") if outcome in audit_of(scorer)) == 2
    assert sum(p.numel() for p in network.parameters()) < 1_000_000


def test_expected_marks_are_those_of_the_share_that_is_shown(script):
    """1/3 is the mark 1 + 4 / 3 from 1 to 5, between 2 and 3, and 1 + 9 / 3 = 4 from 1 to 10; of 1/2 and 1 the second is better."""
    np.testing.assert_allclose(script.chances_of(("pointwise", "logprobs"), [1 / 3]), [0, 2 / 3, 1 / 3, 0, 0], atol=1e-12)
    assert script.chances_of(("pointwise", "json"), [1 / 3]).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert script.chances_of(("pairwise", "logprobs"), [0.5, 1.0]).tolist() == [1, 0]
    assert script.chances_of(("pairwise", "json"), [1.0, 0.5]).tolist() == [0, 0, 1]
    assert script.answers_of("pairwise", "json") == ['{"better": "second"}', '{"better": "tie"}', '{"better": "first"}']
