"""Texts of a prompt writer, ranked by the pictures that are drawn from them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.records import Message
from diffalign.data.table import read_table
from diffalign.infer.generate_pairs import check, generate
from diffalign.infer.options import GenerateConfig
from diffalign.infer.sample import draw
from diffalign.infer.shards import seed_of
from diffalign.infer.text import rewrites
from diffalign.infer.text.rewrites import Writing
from diffalign.models.backbones.table import load_pipeline
from tests.infer.test_generate_pairs import Redness
from tests.shades import add_scorer

TEXTS = {"a star": ["a red star", "", "a blue star", "a red star"], "a heart": ["a heart"] * 4}


class Writer:
    """Writes the texts above, one after another, to each prompt."""

    conversational = True

    def sampled(self, prompts, seeds, *, max_new_tokens):
        assert len(set(seeds)) == len(seeds)  # each text by a seed of its own
        assert max_new_tokens == 64
        return [SimpleNamespace(text=TEXTS[prompt][k % 4]) for k, prompt in enumerate(prompts)]


@pytest.fixture
def options(monkeypatch, micro_sd, tmp_path):
    add_scorer(monkeypatch, "red", Redness)
    return {
        "pretrained_model_name_or_path": str(micro_sd),
        "output_dir": str(tmp_path / "rewrites"),
        "num_inference_steps": 2,
        "scorers": ["red"],
        "rewriter": "assets/tiny-lm",
    }


def test_rewrites_have_the_scores_and_ranks_of_pictures_from_one_noise(options, micro_sd, monkeypatch):
    monkeypatch.setattr(rewrites, "load_language_model", lambda name, device: SimpleNamespace(network=None, tokenizer=None))
    monkeypatch.setattr(rewrites, "Rewriter", lambda network, tokenizer: Writer())
    generate(GenerateConfig(**options), list(TEXTS))
    table = read_table(options["output_dir"])
    assert table.manifest["rejected_rows"] == 1  # all rewrites of the heart are one text
    (record,) = table
    assert (record.prompt, record.messages) == ("a star", (Message("user", "a star"),))
    assert [c.text for c in record.candidates] == ["a red star", "a star", "a blue star"]  # a text without words is the prompt
    noise = seed_of(0, "a star", 0)
    again = draw(load_pipeline(str(micro_sd)), ["a red star", "a star", "a blue star"], [noise] * 3, num_inference_steps=2)
    reds = [np.asarray(image)[..., 0].mean() for image in again]
    assert [c.scores["red"] for c in record.candidates] == pytest.approx(reds, abs=0.5)  # batches of another size round otherwise
    assert [c.rank for c in record.candidates] == [1.0 + sum(n * (o > own) for n, o in zip((2, 1, 1), reds, strict=True)) for own in reds]
    assert {c.model for c in record.candidates} == {"assets/tiny-lm"}


def test_a_language_model_writes_a_text_by_its_seed():
    writing = Writing.open("assets/tiny-lm", 8, torch.device("cpu"))
    alone, other = writing(["a star"], [3]), writing(["a ring", "a star", "a star"], [3, 3, 4])
    assert alone == [other[1]]
    assert other[1] != other[2]


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"rewriter": None, "sentence_model": "x"}, ConfigError, "there is no `rewriter`"),
        ({"sentence_model": "./none"}, ConfigError, "there is no such folder"),
        ({"max_new_tokens": 0}, ConfigError, "`max_new_tokens` is 0"),
        ({"rewriter": "assets/tiny-sd"}, CheckpointError, "assets/tiny-sd"),
    ],
)
def test_what_cannot_write_is_refused_before_anything_loads(options, wrong, error, says):
    with pytest.raises(error, match=says):
        check(GenerateConfig(**options | wrong), ["a star"])


def test_an_edit_model_takes_no_rewriter(options):
    with pytest.raises(ConfigError, match="an edit model draws from a picture"):
        check(GenerateConfig(**options), ["a star"], [b"picture"])
