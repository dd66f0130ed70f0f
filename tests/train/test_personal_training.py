"""Personalised training keeps the trainer's invariants, with any objective, trajectory and user encoder; misuse is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import diffalign
from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.core.runs import Run
from diffalign.data.importing import import_dataset
from diffalign.evaluate.heldout import accuracy_on
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.trajectory_cache import Precomputed
from diffalign.models.users import branch
from diffalign.train import align as api
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.infer.user_runs import choices, write_votes
from tests.micro import write_pairs
from tests.models.users.vlm_models import write_llava

NAMES = ("ann", "bob", "cy")
CONSTANTS = {"tokens": 2, "width": 8, "hidden": 8, "max_shots": 2, "fit_steps": 2, "fit_batch": 4}
PAIRS, VARIATIONAL = {"pairs": CONSTANTS}, {"pairs": {**CONSTANTS, "variational": True, "kl_weight": 0.1}}
# The step is linear in the gradient and beta small: see test_trainer.py.
LINEAR = {"adam_epsilon": 1.0, "learning_rate": 1.0, "beta": 10.0, "max_grad_norm": 1e9, "max_train_steps": 4}
INVERSION = {"ddim_inversion": {"steps": 3, "renoise": 1, "eta": 0.1, "driver": "reference"}}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The choices of three users, four each."""
    folder = tmp_path_factory.mktemp("votes")
    return import_dataset(str(write_votes(folder / "votes.parquet", NAMES)), folder / "table").path


@pytest.fixture
def config(micro_sd, table, tmp_path):
    return TrainConfig(
        pretrained_model_name_or_path=str(micro_sd),
        dataset_name=str(table),
        output_dir=str(tmp_path / "run"),
        method="ppd",
        user_encoder=PAIRS,
        max_train_steps=3,
        train_batch_size=6,
        learning_rate=1e-2,
        adam_weight_decay=0.0,  # which would move what learns nothing
    )


def begun(config):
    """Return what a run would train, by name, before its first step."""
    trainer = trainer_for(config)
    state = branch.state_of(trainer.network)
    own = {f"{part}.{name}": value for part, values in state.items() for name, value in values.items()}
    return {**own, **{name: value.clone() for name, value in trainer.network.user_encoder.state_dict().items()}}


def moved(config, trained):
    """Return how far the matrices of a user branch have come."""
    start = begun(config)
    return {name: (trained[name] - start[name]).norm().item() for name in trained if name.endswith(("_k_ip.weight", "_v_ip.weight"))}


def run(config, **changes):
    """Train and return what is trained, by name, and the rows of the log."""
    folder = api.train(replace(config, **changes))
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return {**load_file(folder / "ip_adapter.safetensors"), **load_file(folder / "user_encoder.safetensors")}, log


def assert_same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    assert max((a[name] - b[name]).abs().max().item() for name in a) <= tolerance
    assert sum((a[name] - b[name]).abs().mean().item() for name in a) / len(a) <= tolerance


def test_a_run_repeats_bit_for_bit_and_says_what_it_is(config, tmp_path):
    first, log = run(config)
    second, again = run(config, output_dir=str(tmp_path / "again"))
    assert_same(first, second)
    assert log == again
    assert {"user/accuracy", "implicit_acc", "log_ratio/chosen", "grad_norm"} <= log[0].keys()
    assert log[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["inference"], facts["train_method"], facts["user_encoder"]) == ("user", "user", PAIRS)
    assert diffalign.load(tmp_path / "run").for_user(choices()).tokens.shape == (2, 8)


@pytest.mark.parametrize("encoder", [PAIRS, VARIATIONAL, "mixture"], ids=["pairs", "variational", "mixture"])
def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, encoder, monkeypatch):
    options = {"user_encoder": encoder, "user_dropout": 0.4, "proportion_empty_prompts": 0.3, "use_ema": True, "lr_warmup_steps": 2}
    whole, whole_log = run(config, **options, max_train_steps=5, checkpointing_steps=2)
    part = replace(config, **options, output_dir=str(tmp_path / "part"), checkpointing_steps=2, max_train_steps=5)
    run(part)
    shutil.rmtree(tmp_path / "part" / "checkpoint-4")  # as if it had been killed before
    monkeypatch.setattr(
        "diffalign.methods.builders.users.fit", lambda *_: pytest.fail("fitted once more, though the checkpoint replaces it")
    )
    rest, rest_log = run(part, resume_from_checkpoint="latest")
    assert_same(whole, rest)
    assert [row["loss"] for row in rest_log] == [row["loss"] for row in whole_log]
    for changes in ({"user_encoder": {"pairs": {**CONSTANTS, "max_shots": 3}}}, {"user_dropout": 0.2}):
        with pytest.raises(CheckpointError, match=f"made with {next(iter(changes))}"):
            run(part, max_train_steps=6, resume_from_checkpoint="latest", **changes)


def test_users_who_are_described_otherwise_are_not_gone_on_with(config, tmp_path):
    numbers = tmp_path / "numbers.json"
    numbers.write_text(json.dumps({"ann": [1, 0], "bob": [0, 1], "cy": [0.5, 0.5]}))
    vector = replace(config, user_encoder={"vector": {"tokens": 2, "width": 8, "vectors": str(numbers)}}, checkpointing_steps=2)
    run(vector)
    numbers.write_text(json.dumps({"ann": [1, 0], "bob": [0, 1], "cy": [0.5, 0.6]}))
    with pytest.raises(CheckpointError, match="made with user_source"):
        run(vector, max_train_steps=6, resume_from_checkpoint="latest")
    with pytest.raises(CheckpointError, match="features of these users"):
        accuracy_on(Run.open(vector.output_dir), config.dataset_name, None, None, "cpu")


def test_a_finished_encoder_is_judged_as_it_is(config, monkeypatch):
    run(config)
    monkeypatch.setattr("diffalign.methods.builders.users.fit", lambda *_: pytest.fail("fitted, though the run's encoder replaces it"))
    assert 0.0 <= accuracy_on(Run.open(config.output_dir), config.dataset_name, None, None, "cpu").accuracy <= 1.0


def test_accumulation_equals_the_large_batch(config, tmp_path):
    config = replace(config, **LINEAR, user_dropout=0.3)
    large, large_log = run(config)
    small, small_log = run(config, train_batch_size=2, gradient_accumulation_steps=3, output_dir=str(tmp_path / "small"))
    start = begun(config)
    assert max((large[name] - start[name]).abs().max() for name in start if name.startswith(("ip_adapter", "image_proj"))) > 1e-4
    assert_same(large, small, 2e-6)
    for a, b in zip(large_log, small_log, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["user/accuracy"] == pytest.approx(b["user/accuracy"], abs=1e-6)


def test_the_moving_average_is_what_gets_saved(config, tmp_path):
    raw, _ = run(config)
    averaged, _ = run(config, use_ema=True, ema_decay=0.9, output_dir=str(tmp_path / "ema"))
    assert 0.0 < sum(moved(config, averaged).values()) < sum(moved(config, raw).values())
    assert not torch.equal(raw["head.0.weight"], averaged["head.0.weight"])


def test_cached_and_live_latents_give_the_same_losses(config, tmp_path):
    config = replace(config, **LINEAR, random_flip=True, cache_variants=2, proportion_empty_prompts=0.3)
    _, cached = run(config)
    _, live = run(config, cache="off", output_dir=str(tmp_path / "live"))
    assert [row["loss"] for row in live] == pytest.approx([row["loss"] for row in cached], abs=1e-5)


def test_kept_points_are_those_of_the_base_and_users_are_told_beside_them(config, tmp_path):
    kept = {"trajectory": INVERSION, "trajectory_cache": 2, "cache_dir": str(tmp_path / "cache")}
    config = checked(replace(config, **kept))
    plain = checked(replace(config, method="inpo", user_encoder=None, train_method="lora", rank=2))
    trainer_for(plain)
    trainer = trainer_for(config)
    assert len(list((tmp_path / "cache").glob("points-*"))) == 1  # a network with a branch that is off is its base
    points = trainer.parts.pairs.pairs
    assert isinstance(points, Precomputed)
    assert points.missing() == []
    batch = trainer.parts.pairs.to_batch([trainer.parts.pairs[position, 0] for position in (0, 5)])
    assert {"user", "user_mask", "user_kept"} <= batch.query.condition.keys()
    _, log = run(config)
    assert log[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
    assert log[2]["log_ratio/chosen"] != 0.0


@pytest.mark.parametrize("driver", ["policy", "ema"])
def test_the_policy_may_run_the_inversion_for_its_users(config, driver):
    _, log = run(config, trajectory={"ddim_inversion": {"steps": 2, "driver": driver}})
    assert all(math.isfinite(value) for row in log for value in row.values())


@pytest.mark.parametrize(
    "options",
    [
        {"objective": {"ipo": {"tau": 0.01}}},
        {"objective": "hinge", "beta": 100.0},
        {"objective": "mapo", "reference": "none", "beta": 0.1},
        {"method": "inpo", "train_method": "user", "trajectory_cache": 1},
        {"method": "diffusion_dpo"},
    ],
    ids=["ipo", "hinge", "mapo", "inpo", "diffusion_dpo"],
)
def test_any_objective_may_be_told_who_chose(config, options):
    trained, log = run(config, **options)
    assert all(math.isfinite(value) for row in log for value in row.values())
    assert all(row["grad_norm"] > 0 and row["skipped"] == 0 for row in log)
    assert all(distance > 0.0 for distance in moved(replace(config, **options), trained).values())
    facts = json.loads((Path(config.output_dir) / "run.json").read_text())
    assert (facts["method"], facts["inference"]) == (options.get("method", "ppd"), "user")
    assert diffalign.load(config.output_dir).for_user(choices()).tokens.any()


def encoders(folder):
    """Return a spec of every user encoder, with the files that it reads."""
    (folder / "texts.json").write_text(json.dumps({"ann": "likes red", "bob": "likes blue rings", "cy": "likes stars"}))
    (folder / "numbers.json").write_text(json.dumps({"ann": [1, 0], "bob": [0, 1], "cy": [0.5, 0.5]}))
    small = {"tokens": 2, "width": 8}
    return {
        "pairs": PAIRS,
        "variational": VARIATIONAL,
        "vlm": {"vlm": {"width": 8, "model": str(write_llava(folder / "llava")), "shots": 2, "max_new_tokens": 3}},
        "mixture": {"mixture": small},
        "one_hot": {"one_hot": small},
        "profile": {"profile": {**small, "profiles": str(folder / "texts.json")}},
        "vector": {"vector": {**small, "vectors": str(folder / "numbers.json")}},
    }


@pytest.mark.parametrize("name", ["pairs", "variational", "vlm", "mixture", "one_hot", "profile", "vector"])
def test_every_user_encoder_trains(config, name, tmp_path):
    spec = encoders(tmp_path)[name]
    trained, log = run(config, user_encoder=spec, use_ema=False)
    assert log[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
    assert all(math.isfinite(value) for row in log for value in row.values())
    assert all(distance > 0.0 for distance in moved(replace(config, user_encoder=spec), trained).values())
    assert ("user/kl" in log[0]) is (name == "variational")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["user_encoder"].keys() == spec.keys()


def test_a_batch_of_one_does_not_look_like_a_collapsed_posterior(config):
    _, log = run(config, user_encoder=VARIATIONAL, train_batch_size=1)
    assert all(row["user/active"] > 0.0 for row in log)


def test_validation_pictures_are_drawn_from_step_0(config):
    run(config, validation_prompts=["a star"], validation_steps=2, use_ema=True)
    names = sorted(path.name for path in (Path(config.output_dir) / "validation").iterdir())
    assert names == ["step-000000.png", "step-000002.png", "step-000003.png"]


def test_align_takes_records_that_name_their_users(micro_sd, table, tmp_path):
    votes = TrainConfig(dataset_name=str(table), output_dir=str(tmp_path / "data"))
    records = list(open_dataset(votes, recipe_of(votes)))
    options = {"max_train_steps": 2, "train_batch_size": 3, "user_encoder": PAIRS}
    folder = api.align(str(micro_sd), records, method="ppd", output_dir=tmp_path / "run", **options)
    personal = diffalign.load(folder)
    assert personal.for_user(records[:2]).tokens.shape == (2, 8)
    with pytest.raises(ConfigError, match="holds an earlier run"):
        api.align(str(micro_sd), records, method="ppd", output_dir=tmp_path / "run", **options)
    api.align(str(micro_sd), records, output_dir=tmp_path / "run", rank=2, max_train_steps=1, overwrite_output_dir=True)
    assert not (tmp_path / "run" / "ip_adapter.safetensors").exists()


def test_data_that_name_no_users_are_refused_before_weights_are_loaded(config, tmp_path, monkeypatch):
    monkeypatch.setattr("diffalign.train.trainer.make_trainer", lambda *_, **__: pytest.fail("built"))
    pairs = write_pairs(tmp_path / "pairs.parquet", count=3)
    with pytest.raises(TableError, match=r"2 labelled pairs.*user_id"):
        api.train(replace(config, dataset_name=str(pairs)))
    with pytest.raises(TableError, match=r"6 labelled pairs.*3 named users.*4 pairs"):
        api.train(replace(config, user_encoder={"vlm": {"model": "m", "shots": 3}}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_method": "lora"}, r"`train_method` is lora and `user_encoder` is .*pairs.*expected train_method user with a user encoder"),
        ({"train_method": "full"}, "`train_method` is full and `user_encoder` is"),
        ({"method": "diffusion_dpo", "user_encoder": None, "train_method": "user"}, "is user and `user_encoder` is None"),
        ({"method": "diffusion_dpo", "user_encoder": "one_hot", "train_method": "dora"}, "`train_method` is dora"),
        ({"method": "diffusion_npo"}, "which the transform `invert` removes or inverts"),
        ({"method": "self_npo"}, "the transform `prompt_only` removes"),
        ({"transforms": ["pairs", "preferred"]}, "the transform `preferred` removes"),
        ({"transforms": ["pairs", "orient", "invert"]}, "the transform `invert` removes"),
        ({"user_encoder": "pears"}, r"there is no user_encoder `pears`\. Did you mean `pairs`\?"),
        ({"user_encoder": {"pairs": {"tokens": 0}}}, "`tokens` is 0; expected at least 1"),
        ({"user_dropout": 1.0}, r"`user_dropout` is 1\.0; expected a share"),
        ({"user_encoder": {"vector": {"vectors": "nowhere.json"}}}, r"`vectors` nowhere\.json cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(config, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        api.train(replace(config, **changes))
