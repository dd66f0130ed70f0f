"""Weights in bfloat16 learn what float32 ones do, on average, where rounding to nearest would leave them where they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diffalign.core.errors import ConfigError
from diffalign.methods.checks import check
from diffalign.train.rounding import StochasticRounding, rounded
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.train.configs import small_config

RATE, STEPS = 1e-4, 200


def weights(count, dtype=torch.bfloat16):
    return nn.Parameter(torch.ones(count, dtype=dtype))


def steps(optimizer, parameter, count):
    """Step down a slope of one: AdamW moves a weight by the learning rate, whatever the slope is."""
    for _ in range(count):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def adamw(parameter):
    return torch.optim.AdamW([parameter], lr=RATE, weight_decay=0.0)


def test_updates_of_a_ten_thousandth_are_lost_to_nearest_and_kept_stochastically():
    nearest, kept, exact = weights(2000), weights(2000), weights(1, torch.float32)
    steps(adamw(nearest), nearest, STEPS)
    steps(StochasticRounding(adamw(kept), 0), kept, STEPS)
    steps(adamw(exact), exact, STEPS)
    assert exact.item() == pytest.approx(1 - RATE * STEPS, abs=1e-5)  # 200 roundings of float32, of 3e-8 each
    assert torch.equal(nearest, torch.ones_like(nearest))  # 1 - 2^-8 is the next number, and an update is a fortieth of the way
    # A weight is a sum of 200 draws of 2^-8 with chance 0.0256: deviation 0.0087, and of the mean of 2000 weights 0.0002.
    assert kept.float().mean().item() == pytest.approx(exact.item(), abs=4 * 0.0002)


def test_numbers_that_bfloat16_has_are_never_moved():
    x = torch.tensor([0.0, -1.5, 3.0e38, 2.0**-120, -0.0078125]).bfloat16().float()
    for seed in range(20):
        assert torch.equal(rounded(x, torch.Generator().manual_seed(seed)).float(), x)


def test_a_state_that_is_loaded_goes_on_to_the_bit_and_stays_float32():
    whole, again = weights(50), weights(50)
    optimizer = StochasticRounding(adamw(whole), 3)
    steps(optimizer, whole, 5)
    other = StochasticRounding(adamw(again), 3)
    other.load_state_dict(optimizer.state_dict())
    again.data.copy_(whole.data)
    assert {value.dtype for value in other.state[again].values()} == {torch.float32}
    assert again.dtype == torch.bfloat16
    steps(optimizer, whole, 5)
    steps(other, again, 5)
    assert torch.equal(whole, again)


def test_full_training_in_bfloat16_starts_at_its_reference_moves_and_resumes_to_the_bit(micro_sd, pairs_file, tmp_path):
    own = small_config(micro_sd, pairs_file, tmp_path / "run", max_train_steps=2, train_batch_size=4, learning_rate=1e-5)
    own = replace(own, train_method="full", mixed_precision="bf16", full_bf16=True, checkpointing_steps=1, beta=50.0)
    folder = trainer_for(checked(own)).fit()
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert log[0]["log_ratio/chosen"] == log[0]["log_ratio/rejected"] == 0.0
    assert log[1]["log_ratio/chosen"] != 0.0
    (file,) = (folder / "unet").glob("*.safetensors")
    trained = load_file(file)
    assert {value.dtype for value in trained.values()} == {torch.bfloat16}
    resumed = replace(own, output_dir=str(tmp_path / "again"), resume_from_checkpoint=str(folder / "checkpoint-1"))
    again = load_file(trainer_for(resumed).fit() / "unet" / file.name)
    assert all(torch.equal(value, again[name]) for name, value in trained.items())


@pytest.mark.parametrize(
    "changes", [{"train_method": "lora"}, {"mixed_precision": "no"}, {"use_ema": True}], ids=lambda changes: next(iter(changes))
)
def test_what_bfloat16_weights_cannot_go_with_is_refused(micro_sd, pairs_file, tmp_path, changes):
    own = small_config(micro_sd, pairs_file, tmp_path / "run", train_method="full", mixed_precision="bf16", full_bf16=True)
    with pytest.raises(ConfigError, match="`full_bf16`"):
        check(replace(own, **changes))
