"""The trainer's invariants, on a random Stable Diffusion: what must not change a result does not change it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffalign.core.errors import CheckpointError, TrainingError
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.train.align import align
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.train.configs import small_config


@pytest.fixture
def config(micro_sd, pairs_file, tmp_path):
    return small_config(micro_sd, pairs_file, tmp_path / "run", max_train_steps=3, train_batch_size=8, learning_rate=1e-3)


def run(config, **changes):
    """Train and return (final weights, log rows)."""
    config = checked(replace(config, **changes))
    folder = trainer_for(config).fit()
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    files = list(folder.glob("*.safetensors")) + list(folder.glob("unet/*.safetensors"))
    return load_file(files[0]), log


def assert_same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    worst = max((a[name] - b[name]).abs().max().item() for name in a)
    mean = sum((a[name] - b[name]).abs().mean().item() for name in a) / len(a)
    assert worst <= tolerance
    assert mean <= tolerance


def test_a_run_repeats_bit_for_bit(config, tmp_path):
    first, log = run(config)
    second, again = run(config, output_dir=str(tmp_path / "again"))
    assert_same(first, second)
    assert log == again
    assert any(value.abs().max() > 0 for name, value in first.items() if "lora_B" in name)


def test_the_first_loss_is_ln_2_and_every_scalar_is_logged(config):
    _, log = run(config)
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert {"implicit_acc", "log_ratio/chosen", "log_ratio/rejected", "rewards/margins", "grad_norm", "lr"} <= log[0].keys()
    assert log[0]["log_ratio/chosen"] == 0.0
    assert log[2]["log_ratio/chosen"] != 0.0


# Adam divides by the root of the second moment: where a gradient is nothing but rounding noise, a plain epsilon blows the noise up to
# a whole step. With a large epsilon the step is linear in the gradient, and the gradient is what these tests compare. A small beta,
# because beta multiplies the rounding of a float32 error (1e-7) before it reaches the loss.
LINEAR = {"adam_epsilon": 1.0, "learning_rate": 1.0, "beta": 10.0}


def test_accumulation_equals_the_large_batch(config, tmp_path):
    config = replace(config, **LINEAR)
    large, large_log = run(config)
    small, small_log = run(config, train_batch_size=2, gradient_accumulation_steps=4, output_dir=str(tmp_path / "small"))
    assert max(value.abs().max() for name, value in large.items() if "lora_B" in name) > 1e-3
    assert_same(large, small, 1e-6)
    for a, b in zip(large_log, small_log, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["implicit_acc"] == pytest.approx(b["implicit_acc"], abs=1e-6)


def test_cached_and_live_latents_give_the_same_losses(config, tmp_path):
    options = {
        "random_crop": True,
        "random_flip": True,
        "cache_variants": 2,
        "proportion_empty_prompts": 0.3,
        "max_train_steps": 5,
        **LINEAR,
    }
    cached, cached_log = run(config, **options)
    live, live_log = run(config, cache="off", output_dir=str(tmp_path / "live"), **options)
    for a, b in zip(cached_log, live_log, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert_same(cached, live, 1e-5)


def test_gradient_checkpointing_changes_nothing(config, tmp_path):
    plain, _ = run(config)
    saved, _ = run(config, gradient_checkpointing=True, output_dir=str(tmp_path / "saved"))
    assert_same(plain, saved, 1e-6)


@pytest.mark.parametrize("train_method", ["dora", "full"])
def test_every_train_method_moves_weights_and_starts_at_ln_2(config, train_method):
    _, log = run(config, train_method=train_method, learning_rate=1e-4)
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-3)
    assert log[2]["loss"] != log[0]["loss"]


@pytest.mark.parametrize("objective", [{"ipo": {"tau": 5000.0}}, {"hinge": {"beta": 1000.0}}, "denoise"], ids=str)
def test_every_objective_trains(config, objective):
    weights, log = run(config, objective=objective, max_train_steps=2)
    assert len(log) == 2
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("train_method", ["lora", "full"])
def test_policy_and_reference_agree_to_the_bit_at_step_0_in_half_precision(config, train_method):
    _, log = run(config, mixed_precision="bf16", train_method=train_method, max_train_steps=2)
    assert log[0]["log_ratio/chosen"] == log[0]["log_ratio/rejected"] == 0.0
    assert log[1]["log_ratio/chosen"] != 0.0


def test_no_reference_builds_and_runs_no_second_network(config, monkeypatch):
    monkeypatch.setattr("diffalign.methods.builders.image.load_denoiser", lambda *_, **__: pytest.fail("a second network was built"))
    _, log = run(config, objective="denoise", reference="none", train_method="full", max_train_steps=2)
    assert "log_ratio/chosen" not in log[0]


@pytest.mark.parametrize(
    "schedule", [{"prediction_type": "v_prediction"}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}]
)
def test_v_prediction_and_zero_terminal_snr_checkpoints_train(config, tmp_path, schedule):
    from tests.micro import write_micro_sd

    model = write_micro_sd(tmp_path / "v", **schedule)
    _, log = run(config, pretrained_model_name_or_path=str(model))
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_the_moving_average_is_what_gets_saved(config, tmp_path):
    raw, _ = run(config)
    averaged, _ = run(config, use_ema=True, ema_decay=0.9, output_dir=str(tmp_path / "ema"))
    moved = [name for name in raw if "lora_B" in name]
    assert sum(averaged[n].norm() for n in moved) < sum(raw[n].norm() for n in moved)


def test_resuming_equals_an_uninterrupted_run(config, tmp_path):
    options = {"max_train_steps": 6, "checkpointing_steps": 2, "use_ema": True, "lr_warmup_steps": 4, "checkpoints_total_limit": 1}
    whole, whole_log = run(config, **options)
    part = replace(config, output_dir=str(tmp_path / "part"), **{**options, "max_train_steps": 5})
    run(part)
    assert [p.name for p in Path(part.output_dir).glob("checkpoint-*")] == ["checkpoint-4"]
    rest, rest_log = run(part, max_train_steps=6, resume_from_checkpoint="latest")
    assert_same(whole, rest)
    assert [row["loss"] for row in rest_log] == [row["loss"] for row in whole_log]


def test_a_checkpoint_of_other_data_or_another_seed_is_refused(config):
    run(config, checkpointing_steps=1, max_train_steps=2)
    with pytest.raises(CheckpointError, match="made with seed 0, this run has 1"):
        run(config, seed=1, resume_from_checkpoint="latest")


def test_a_run_that_falls_apart_is_stopped_and_says_why(config, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match=r"bad steps.*--learning_rate"):
        run(config, learning_rate=1e30, max_bad_steps=3, max_train_steps=50, max_grad_norm=1e30)
    assert sum("skipped" in record.message for record in caplog.records) == 3


def test_label_smoothing_and_beta_reach_the_objective(config):
    trainer = trainer_for(replace(config, beta=77.0, label_smoothing=0.1))
    assert trainer.parts.recipe.objective.spec == {"dpo": {"beta": 77.0, "label_smoothing": 0.1}}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_validation_grids_are_drawn_from_step_0(config, precision):
    run(config, use_ema=True, mixed_precision=precision, validation_prompts=["a star", "a red heart"], validation_steps=2)
    names = sorted(p.name for p in (Path(config.output_dir) / "validation").iterdir())
    assert names == ["step-000000.png", "step-000002.png", "step-000003.png"]


def test_align_takes_records_and_returns_a_folder_that_loads(micro_sd, pairs_file, tmp_path):
    import diffalign

    pairs = TrainConfig(dataset_name=str(pairs_file), output_dir=str(tmp_path / "data"))
    records = list(open_dataset(pairs, recipe_of(pairs)))
    folder = align(str(micro_sd), records, output_dir=tmp_path / "run", max_train_steps=2, train_batch_size=4, rank=2)
    pipe = diffalign.load(folder)
    assert pipe.unet.peft_config
