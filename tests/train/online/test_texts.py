"""A language model trained online by the pictures of what it writes: the same loop, on the tokens that it sampled."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError, TrainingError
from diffalign.core.runs import Run
from diffalign.data.table import ROWS, read_table
from diffalign.infer.kinds.text import base_writer
from diffalign.infer.sample import draw
from diffalign.models.backbones.table import load_pipeline
from diffalign.train import align as api
from diffalign.train.online.log import Log
from diffalign.train.online.ratio import log_ratio
from diffalign.train.trainer import Trainer, trainer_for
from tests.killing import Killed, killing
from tests.models.text.models import folder, llama, tokenizer
from tests.shades import add_scorer
from tests.train.online.scorers import Bright, online_config

GRPO = {"clipped_ratio": {"low": 0.2}}
OBJECTIVES = {
    "grpo": {"objective": GRPO},
    "dr_grpo": {"objective": {"clipped_ratio": {"low": 0.2, "normaliser": "fixed", "length": 6}}, "advantages": {"spread": "none"}},
    "gspo": {"objective": {"clipped_ratio": {"low": 3e-4, "high": 4e-4, "level": "sequence"}}},
    "with a kl": {"objective": {"clipped_ratio": {"low": 0.2, "kl": 0.1}}, "reference": "policy_start"},
    "all weights": {"objective": GRPO, "train_method": "full", "use_ema": True, "rollout_policy": "ema"},
    "online dpo": {
        "objective": "dpo",
        "reference": "policy_start",
        "beta": 0.1,
        "transforms": [{"pairs": {"how": "best_worst"}}, "orient"],
    },
}
FIRST = {"grpo": 0.0, "dr_grpo": 0.0, "gspo": 0.0, "with a kl": 0.0, "online dpo": float(np.log(2.0))}


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    words = tokenizer()
    return folder(tmp_path_factory.mktemp("writer") / "lm", llama(len(words)), words)


def config(writer, micro_sd, out, **changed):
    """Return the config of two turns of two updates."""
    own = {
        "method": "dpo",
        "beta": None,
        "objective": GRPO,
        "reference": "none",
        "transforms": [{"list_of": {"score": "advantage"}}],
        "image_model": str(micro_sd),
        "max_completion_length": 6,
    }
    return online_config(writer, out, **(own | changed))


def rows_of(run):
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(writer, micro_sd, tmp_path_factory):
    """Two turns, not interrupted; the last update is left out, so that the run ends within a turn."""
    with pytest.MonkeyPatch.context() as patch:
        add_scorer(patch, "bright", Bright)
        return api.train(config(writer, micro_sd, tmp_path_factory.mktemp("texts") / "run", max_train_steps=3))


def test_every_rewrite_is_logged_with_the_score_of_the_picture_that_was_drawn_from_it(whole, micro_sd):
    table = read_table(whole / "data")
    assert table.manifest["kind"] == "text"
    record = table[1]  # of the first turn, which the untrained model writes
    assert [message.content for message in record.messages] == [record.prompt]
    seeds, texts = list(map(int, record.meta["seeds"].split())), [candidate.text for candidate in record.candidates]
    base = base_writer(Run.open(whole, expects="text"))
    assert texts == [text.text for text in base.sampled([record.prompt] * 3, seeds, max_new_tokens=6)]
    images = draw(load_pipeline(str(micro_sd)), texts, [int(record.meta["image_seed"])] * 3, num_inference_steps=2)
    assert [c.scores["bright"] for c in record.candidates] == pytest.approx(Bright()(images, texts), abs=1e-3)
    assert record.meta["image_model"] == str(micro_sd)


def test_the_log_is_a_table_that_language_models_are_trained_on(whole, writer, tmp_path):
    api.align(writer, whole / "data", method="dpo", output_dir=tmp_path / "again", rank=2, max_train_steps=1, train_batch_size=2)


def test_before_the_first_update_the_ratio_of_every_token_is_one(writer, micro_sd, tmp_path):
    trainer = trainer_for(config(writer, micro_sd, tmp_path / "run"))
    turns, pairs = trainer.parts.turns, trainer.parts.pairs
    turns.turn(0, trainer._driving, None)
    batch = pairs.to_batch([pairs[0, 0], pairs[1, 0]])
    assert batch.old.abs().max() > 1.0
    assert log_ratio(trainer.parts.likelihood, trainer.network, batch) < 1e-6


def test_a_replay_in_training_mode_is_refused_by_name(writer, micro_sd, tmp_path):
    with pytest.raises(TrainingError, match=r"turn 1.*tokens.*`lora_dropout`"):  # in turn 0 the adapter is still zero
        api.train(config(writer, micro_sd, tmp_path / "run", lora_dropout=0.5, max_train_steps=3))


def test_every_objective_of_texts_trains_on_what_was_written(writer, micro_sd, tmp_path):
    for name, options in OBJECTIVES.items():
        (row,) = rows_of(api.train(config(writer, micro_sd, tmp_path / name, max_train_steps=1, **options)))
        assert row["grad_norm"] > 0.0, name
        assert row["loss"] == pytest.approx(FIRST.get(name, 0.0), abs=1e-5), name


def test_a_run_that_is_killed_ends_in_the_same_bits(writer, micro_sd, whole, tmp_path, monkeypatch):
    own = config(writer, micro_sd, tmp_path / "run", max_train_steps=3)
    for where, name, survived in [(Log, "write", 0), (Trainer, "optimizer_step", 1), (Trainer, "optimizer_step", 1), (Log, "join", 0)]:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, killing(getattr(where, name), survived))
            with pytest.raises(Killed):
                api.train(own)
        own = replace(own, resume_from_checkpoint="latest")
    api.train(own)
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert (tmp_path / "run" / "data" / ROWS).read_bytes() == (whole / "data" / ROWS).read_bytes()
    one, two = (load_file(run / "adapter_model.safetensors") for run in (tmp_path / "run", whole))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_model": None}, ConfigError, "`image_model` is not set"),
        ({"image_model": "/nowhere/at/all"}, CheckpointError, "/nowhere/at/all"),
        ({"reference": "old_policy"}, ConfigError, "`reference` is 'old_policy'"),
        ({"rollout": "cps"}, ConfigError, "`rollout` is for image models"),
        ({"prompts": [], "scorers": [], "dataset_name": "votes"}, ConfigError, "give the `prompts` to draw"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_loads(writer, micro_sd, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.setattr("diffalign.train.online.loop.open_painters", None)
    with pytest.raises(error, match=message):
        api.train(config(writer, micro_sd, tmp_path / "run", **changes))


def test_a_model_of_images_needs_no_other_to_draw(micro_sd, tmp_path):
    with pytest.raises(ConfigError, match="`image_model` is for language models"):
        api.train(online_config(micro_sd, tmp_path / "run", image_model=str(micro_sd)))


def test_a_dry_run_says_what_is_written_and_drawn(writer, micro_sd, capsys):
    flags = ["--prompts", "a star", "a ring", "--scorers", "adherence", "--images_per_prompt", "4", "--prompts_per_turn", "2"]
    flags += ["--train_batch_size", "2", "--num_inference_steps", "10", "--sample_guidance_scale", "1", "--dry_run", "--method", "dpo"]
    flags += ["--objective", json.dumps(GRPO), "--reference", "none", "--transforms", '[{"list_of": {"score": "advantage"}}]']
    assert main(["train", "--pretrained_model_name_or_path", str(writer), "--image_model", str(micro_sd), *flags]) == 0
    shown = capsys.readouterr().out
    assert "8 images of 10 steps, 80 passes" in shown
    assert "16 texts" in shown
