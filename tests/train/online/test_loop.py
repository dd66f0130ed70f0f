"""The loop of online training: what a turn draws is what is trained on and logged, and a kill at any moment changes nothing."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diffalign
from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.core.runs import Run
from diffalign.data.pictures import decode_image
from diffalign.data.table import ROWS, read_table
from diffalign.infer.sample import draw
from diffalign.methods.config import TrainConfig
from diffalign.models.adapter_files import WEIGHTS
from diffalign.train import align as api
from diffalign.train.online import log as logs
from diffalign.train.online import turns
from diffalign.train.online.log import Log
from diffalign.train.online.rewards import Combination
from diffalign.train.trainer import Trainer
from tests.killing import Killed, killed_at, killing
from tests.micro_models import write_micro
from tests.shades import add_scorer
from tests.train.online.scorers import PROMPTS, Bright, Constant, Dark, online_config


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)


@pytest.fixture(scope="module")
def whole(micro_sd, tmp_path_factory):
    """Two turns, not interrupted; the last update is left out, so that the run ends within a turn."""
    with pytest.MonkeyPatch.context() as patch:
        add_scorer(patch, "bright", Bright)
        return api.train(online_config(micro_sd, tmp_path_factory.mktemp("online") / "run", max_train_steps=3))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def assert_same(folder, other, what):
    """Compare two runs by weights, log of steps, and log of pictures, to the last bit."""
    assert rows_of(folder) == rows_of(other), what
    assert (folder / "data" / ROWS).read_bytes() == (other / "data" / ROWS).read_bytes(), what
    one, two = (load_file(path / WEIGHTS) for path in (folder, other))
    assert all(torch.equal(one[name], two[name]) for name in one), what


def test_the_log_holds_every_picture_with_its_seed_scores_turn_and_step(whole, micro_sd):
    table = read_table(whole / "data")
    assert [record.meta["turn"] for record in table] == ["0", "0", "1", "1"]
    assert [record.meta["step"] for record in table] == ["0", "0", "2", "2"]
    first = table[0]
    images = draw(diffalign.load(whole).to("cpu"), [first.prompt] * 3, [0, 1, 2], num_inference_steps=1)
    assert len(images) == len(first.candidates) == 3
    assert table[0].prompt != table[1].prompt
    for record in table:
        scores = [candidate.scores["bright"] for candidate in record.candidates]
        assert scores == [np.asarray(decode_image(c.image, "x")).mean() / 255.0 for c in record.candidates]
        assert [c.rank for c in record.candidates] == [1.0 + sum(other > score for other in scores) for score in scores]
        assert len(set(record.meta["seeds"].split())) == 3
    assert table.manifest["scorers"][0]["name"] == "bright"


def test_a_picture_is_that_of_its_seed_whatever_is_drawn_beside_it(whole, micro_sd):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(micro_sd)
    pipe.set_progress_bar_config(disable=True)
    record = read_table(whole / "data")[1]  # of the first turn, which the untrained model draws
    (alone,) = draw(pipe, [record.prompt], [int(record.meta["seeds"].split()[2])], num_inference_steps=2)
    logged = np.asarray(decode_image(record.candidates[2].image, "x"), dtype=float)
    assert np.abs(logged - np.asarray(alone, dtype=float)).max() <= 1.0


def test_each_turn_is_compared_with_the_policy_that_began_it(whole):
    rows = rows_of(whole)
    assert [row["log_ratio/chosen"] == 0.0 for row in rows] == [True, False, True]
    assert ["turn" in row for row in rows] == [True, False, True]
    assert all(0.0 < row["reward/bright"] < 1.0 for row in rows if "turn" in row)


def test_the_run_names_its_scorers_as_seen_and_says_what_was_drawn(whole):
    facts = Run.open(whole, expects="image").facts
    assert facts["scorers"] == {"specs": {"bright": "bright"}, "ranked_by": ["bright"]}
    assert (facts["online"]["turns"], facts["online"]["images"], facts["records"]) == (2, 12, 2)
    assert set(facts["turn_seconds"]) == {"draw", "score", "update"}


def test_the_time_of_the_last_turns_updates_counts(micro_sd, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=partial(next, count())))  # a second passes between two looks at it
    folder = api.train(online_config(micro_sd, tmp_path / "run", max_train_steps=1))
    assert Run.open(folder).facts["turn_seconds"]["update"] == 1.0


def test_the_log_is_a_table_that_inspect_and_train_read(whole, micro_sd, tmp_path, capsys):
    assert main(["data", "inspect", "--dataset_name", str(whole / "data")]) == 0
    assert "bright" in capsys.readouterr().out
    config = online_config(micro_sd, tmp_path / "again")
    keys = ("pretrained_model_name_or_path", "output_dir", "method", "beta", "rank", "train_batch_size")
    api.train(replace(type(config)(**{key: getattr(config, key) for key in keys}), dataset_name=str(whole / "data"), max_train_steps=1))


ADVANTAGES = {"method": "diffusion_dpo", "beta": None, "transforms": [{"list_of": {"score": "advantage"}}]}
OBJECTIVES = {
    "awm": {"objective": "awm", "old_policy_decay": {"uprate": 0.001, "uphold": 0.3}, "sequential_candidates": True},
    "dgpo": {"objective": "dgpo", "use_ema": True, "rollout_policy": "ema"},
    "diffusion_nft": {"objective": {"diffusion_nft": {"space": "adaptive"}}, "rollout_policy": "reference"},
    "online_dpo": {"beta": 100.0, "transforms": [{"pairs": {"how": "best_worst"}}, "orient"]},
}


def test_every_objective_trains_on_what_was_drawn(micro_sd, tmp_path):
    flow = write_micro("sd3", tmp_path / "sd3")
    for name, options in OBJECTIVES.items():
        model = flow if name == "diffusion_nft" else micro_sd
        more = {"max_sequence_length": 8} if model == flow else {}
        folder = api.train(online_config(model, tmp_path / name, **(ADVANTAGES | options | more)))
        rows = rows_of(folder)
        assert abs(rows[0]["log_ratio/chosen"]) < 1e-6, name  # the reference is the policy that began the turn
        assert all(row["grad_norm"] > 0.0 for row in rows), name
        moved = load_file(folder / WEIGHTS)
        assert any(value.abs().max() > 0.0 for key, value in moved.items() if "lora_B" in key), name


def test_several_scorers_make_one_reward_and_a_multiplier_survives_a_kill(micro_sd, tmp_path, monkeypatch):
    add_scorer(monkeypatch, "dark", Dark)
    combine = {"lagrange": {"thresholds": {"dark": 0.9}, "rate": 1.0}}
    config = online_config(micro_sd, tmp_path / "whole", scorers=["bright", "dark"], combine=combine)
    api.train(config)
    part = replace(config, output_dir=str(tmp_path / "part"), max_train_steps=1)
    api.train(part)
    api.train(replace(part, max_train_steps=4, resume_from_checkpoint="latest"))
    assert_same(tmp_path / "part", tmp_path / "whole", "with a multiplier")
    rewards = [c.scores["reward"] == c.scores["bright"] for record in read_table(tmp_path / "part" / "data") for c in record.candidates]
    assert rewards == [True] * 6 + [False] * 6  # the multiplier begins at zero, and has grown when the second turn is judged


def test_weights_follow_what_each_rewards_gradient_does_for_all(micro_sd, tmp_path, monkeypatch):
    """Of gradients g, g and -g, shortened to the norm 0.01, the sum is g: influences 1e-4, 1e-4 and -1e-4, times the rate 1, 1 and -1."""

    class AlsoBright(Bright):
        name = "also_bright"

    add_scorer(monkeypatch, "also_bright", AlsoBright)
    add_scorer(monkeypatch, "dark", Dark)
    scorers = ["bright", "also_bright", "dark"]
    combine = {"gradient": {"rate": 1e4, "weights": {"bright": 0.25, "also_bright": 0.25, "dark": 0.5}}}
    options = ADVANTAGES | {"objective": "awm", "max_grad_norm": 0.01, "max_train_steps": 1}
    folder = api.train(online_config(micro_sd, tmp_path / "run", scorers=scorers, combine=combine, **options))
    (row,) = rows_of(folder)
    whole = 0.25 * np.e + 0.25 * np.e + 0.5 / np.e
    expected = [0.25 * np.e / whole, 0.25 * np.e / whole, 0.5 / np.e / whole]
    assert [row[f"weight/{name}"] for name in scorers] == pytest.approx(expected, rel=1e-4)
    record = read_table(folder / "data")[0]
    bright = np.array([candidate.scores["bright"] for candidate in record.candidates])
    expected = (0.5 * np.e - 0.5 / np.e) / whole * (bright - bright.mean()) / bright.std(ddof=1)
    np.testing.assert_allclose([candidate.scores["reward"] for candidate in record.candidates], expected, rtol=1e-3)


def test_weights_that_follow_gradients_survive_a_checkpoint(tmp_path):
    config = TrainConfig(output_dir=str(tmp_path), combine={"gradient": {"rate": 1.0}})
    combination, resumed = Combination(config), Combination(config)
    combination.follow(lambda: {"a": 0.0, "b": np.log(3.0)})
    resumed.restore(combination.state())
    assert resumed.follow(lambda: {"a": np.log(3.0), "b": 0.0}) == pytest.approx({"a": 0.5, "b": 0.5})  # of 1/4 and 3/4


KILLS = [
    (Bright, "__call__", 0),  # the first turn is drawn, and not judged
    (Log, "write", 0),  # and judged, and not written
    (logs, "write_table", 0),  # its latents are written, its table is not
    (Trainer, "optimizer_step", 0),  # it is written, and not trained on
    (Trainer, "optimizer_step", 1),  # within a turn, after a checkpoint
    (Trainer, "optimizer_step", 1),  # at the end of the first turn
    (Log, "join", 0),  # after the last step
    (logs, "write_table", 0),  # before the joined log is written
]


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(micro_sd, whole, tmp_path, monkeypatch):
    config = online_config(micro_sd, tmp_path / "run", max_train_steps=3)
    for where, name, survived in KILLS:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, killing(getattr(where, name), survived))
            with pytest.raises(Killed):
                api.train(config)
        config = replace(config, resume_from_checkpoint="latest")
    api.train(config)
    assert_same(tmp_path / "run", whole, "killed eight times")


@pytest.mark.parametrize("last", [14, 33])
def test_a_kill_at_any_deed_on_the_disk_changes_nothing(micro_sd, whole, tmp_path, last):
    config = online_config(micro_sd, tmp_path / "run", max_train_steps=3)
    with killed_at(last):
        api.train(config)
    (tmp_path / "run" / ".lock").unlink(missing_ok=True)  # of a process that has ended, whose number it would name
    api.train(replace(config, resume_from_checkpoint="latest"))
    assert_same(tmp_path / "run", whole, f"killed at deed {last}")


def test_a_finished_run_goes_on_within_its_last_turn_as_if_it_had_not_ended(micro_sd, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "part")
    config = online_config(micro_sd, tmp_path / "part", max_train_steps=6, resume_from_checkpoint="latest")
    api.train(config)
    api.train(online_config(micro_sd, tmp_path / "whole", max_train_steps=6))
    assert_same(tmp_path / "part", tmp_path / "whole", "gone on")
    shutil.rmtree(whole.parent / "copy", ignore_errors=True)
    shutil.copytree(whole, whole.parent / "copy")
    shutil.rmtree(whole.parent / "copy" / "data.parts")
    with pytest.raises(CheckpointError, match=r"turn-000001.*within this turn"):
        api.train(replace(config, output_dir=str(whole.parent / "copy")))


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_rewards_that_all_tie_are_refused_in_the_first_turn_before_anything_is_trained(micro_sd, tmp_path, monkeypatch, noise):
    add_scorer(monkeypatch, "bright", lambda: Constant(noise))
    with pytest.raises(TableError, match=r"turn-000000.*bright"):
        api.train(online_config(micro_sd, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_rewards_that_all_tie_later_end_the_run_with_what_was_learned(micro_sd, tmp_path, monkeypatch, caplog):
    add_scorer(monkeypatch, "bright", lambda: Constant(1e-7, after=1))
    with caplog.at_level(logging.WARNING):
        folder = api.train(online_config(micro_sd, tmp_path / "run"))
    facts = Run.open(folder, expects="image").facts
    assert facts["steps"] == 2
    assert "turn 1" in facts["stopped"]
    assert facts["stopped"] in caplog.text
    assert len(read_table(folder / "data")) == 4  # with the turn that taught nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": []}, "`scorers` is empty"),
        ({"combine": "gradient"}, "compares the gradients of rewards; expected two or more scorers"),
        ({"combine": {"prompt_weights": {}}}, "needs `path`"),
        ({"scorers": ["brigt"]}, "there is no scorer `brigt`"),
        ({"images_per_prompt": 65}, "`images_per_prompt` is 65; expected 2 to 64"),
        ({"images_per_prompt": 1}, "`images_per_prompt` is 1; expected 2 to 64"),
        ({"prompts_per_turn": 4, "train_batch_size": 4}, "`prompts_per_turn` is 4; expected at most 3"),
        ({"train_batch_size": 3, "updates_per_turn": 1}, "1 x 3 = 3 records"),
        ({"dataset_name": "votes"}, "`dataset_name` is of a dataset"),
        ({"random_flip": True}, "`random_flip` is of a dataset"),
        ({"prompts": [], "dataset_name": "votes"}, "`scorers` is of pictures that are drawn"),
        ({"rollout_policy": "ema"}, "there is no moving average; set `use_ema`"),
        ({"rollout_policy": "reference", "reference": "policy_start"}, "set `reference` to old_policy"),
        ({"old_policy_decay": {"uprat": 0.1}}, "Did you mean `uprate`"),
        ({"old_policy_decay": {"uphold": 1.0}}, "old_policy_decay.uphold"),
        ({"old_policy_decay": {"uphold": 0.5}, "reference": "policy_start"}, "`old_policy_decay` is of `reference: old_policy`"),
        ({"method": "diffusion_npo", "reference": None}, "does not learn which of its own images are better"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_drawn(micro_sd, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("diffalign.methods.builders.image.backbone", None)
    with pytest.raises(ConfigError, match=message):
        api.train(online_config(micro_sd, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_a_turn_draws_and_loads_nothing(micro_sd, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diffalign.methods.builders.image.backbone", None)
    flags = ["--prompts", *PROMPTS, "--scorers", "bright", "--images_per_prompt", "4", "--prompts_per_turn", "2", "--train_batch_size", "2"]
    flags += ["--num_inference_steps", "10", "--sample_guidance_scale", "1", "--max_train_steps", "7", "--dry_run"]
    assert main(["train", "--pretrained_model_name_or_path", str(micro_sd), "--output_dir", str(tmp_path / "run"), *flags]) == 0
    said = capsys.readouterr().out
    assert "4 turns of 2 of 3 prompts x 4 images, judged by bright" in said
    assert "8 images of 10 steps, 80 passes" in said
    assert not (tmp_path / "run").exists()
