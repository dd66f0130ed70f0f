"""What a plan prints is the arithmetic that is written out here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from diffalign.cli.main import main
from diffalign.core.errors import ConfigError
from diffalign.methods.builders import plan
from diffalign.methods.builders.dry_run import Counts
from diffalign.methods.builders.meta_model import outline
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of

CPU = torch.device("cpu")
# Options, and passes without gradient, passes with it, and what one of these costs.
PASSES = {
    "an adapter: forward 1, backward 1; the reference reads both pictures": ({}, (2, 2, 2)),
    "all weights: backward 2": ({"train_method": "full"}, (2, 2, 3)),
    "run again in the backward pass, twice": ({"gradient_checkpointing": True, "sequential_candidates": True}, (2, 2, 4)),
    "no reference": ({"method": "mapo"}, (0, 2, 2)),
    "an inversion of five steps on both pictures": ({"trajectory": {"ddim_inversion": {"steps": 5}}}, (2 + 5 * 2, 2, 2)),
    "one picture more against an anchor": ({"anchor_dataset_name": "others", "anchor_weight": 1.0}, (3, 3, 2)),
}


def config(**values):
    return TrainConfig(**{"dataset_name": "pairs", **values})


@pytest.mark.parametrize("case", PASSES)
def test_passes_of_a_record(case):
    options, (plain, trained, cost) = PASSES[case]
    own = config(**options)
    assert plan.passes(own, recipe_of(own)) == plan.Passes(plain, trained, cost)
    assert plan.passes(own, recipe_of(own)).total == plain + trained * cost


def test_an_inversion_that_is_kept_is_asked_for_before_training():
    own = config(trajectory={"ddim_inversion": {"steps": 5, "driver": "reference"}}, trajectory_cache=4)
    assert plan.passes(own, recipe_of(own)) == plan.Passes(2, 2, 2, kept=5 * 2)


def test_flops_are_two_for_each_product():
    drawn = SimpleNamespace(mode=FakeTensorMode(), model=SimpleNamespace(device=CPU))
    assert plan.counted(drawn, lambda: torch.zeros(3, 5) @ torch.zeros(5, 7)) == 2 * 3 * 5 * 7

    def attend():
        q, k = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 6, 8)  # two heads of width 8, 4 queries and 6 keys
        functional.scaled_dot_product_attention(q, k, k)

    assert plan.counted(drawn, attend) == 2 * (2 * 4 * 6 * 8) * 2  # heads x queries x keys x width, for scores and for values


def test_the_columns_by_hand(micro_sd, monkeypatch):
    own = config(
        pretrained_model_name_or_path=str(micro_sd),
        train_batch_size=4,
        gradient_accumulation_steps=2,
        max_train_steps=50,
        cache_variants=2,
        rank=2,
    )
    drawn, recipe = outline(own, recipe_of(own), CPU), recipe_of(own)
    monkeypatch.setattr(plan, "forward_flops", lambda *_: 6 * 10**12)
    monkeypatch.setattr(plan, "encoder_flops", lambda *_: (18 * 10**12, 9 * 10**12))
    counts = Counts(rows=1000, images=2000, prompts=100)
    # In float32: 100e12 FLOP/s at half of it are 50e12, so 36e12 FLOP a record are 1.39 records a second.
    made = plan.Plan(counts, plan.Device(half=400, single=100, memory=1), 0.5)
    rows = dict(plan.columns(own, recipe, drawn, made, [1, 4]))
    assert rows["records a step"] == ["8: 4 x 2 x 1", "32: 4 x 2 x 4"]
    assert rows["steps an epoch"] == ["125", "32"]  # 1000 / 8, and 31.25
    assert rows["epochs"] == ["0.4", "1.6"]  # 50 x 8 / 1000
    assert rows["forward passes of a picture"] == ["2.4e+03", "9.6e+03"]  # 6 a record: 2 + 2 x 2
    assert rows["seconds a step"] == ["5.76", "5.76"]  # 8 x 36 / 50
    assert rows["hours of training"] == ["0.08", "0.08"]  # 50 x 5.76 / 3600
    assert rows["GPU-hours of training"] == ["0.08", "0.32"]
    # 4000 pictures of 18 and 100 prompts of 9, at 50 a second: 1458 s
    assert rows["hours of filling the cache"] == ["0.405", "0.101"]
    # 4 x 8 x 8 numbers a picture, and 101 prompts of the text encoder's tokens and width, 4 bytes each
    words = drawn.model.encode_prompt(["a star"])
    numbers = 4000 * 4 * 8 * 8 + 101 * sum(value.numel() for value in words.values())
    assert rows["cache on disk"] == [f"{4 * numbers / 2**20:.2f} MiB"] * 2
    trained = sum(p.numel() for p in drawn.model.denoiser.parameters() if p.requires_grad)
    assert rows["a checkpoint"] == [f"{12 * trained / 2**20:.2f} MiB"] * 2  # float32, and AdamW's two moments


def test_a_measured_rate_and_a_batch_that_is_kept(micro_sd, monkeypatch):
    own = config(pretrained_model_name_or_path=str(micro_sd), train_batch_size=4, max_train_steps=50, rank=2, cache="off")
    drawn, recipe = outline(own, recipe_of(own), CPU), recipe_of(own)
    monkeypatch.setattr(plan, "forward_flops", lambda *_: 1)
    made = plan.Plan(Counts(1000, 2000, 100), plan.DEVICES["h100"], 0.5, rate=2.0, batch=64)
    rows = dict(plan.columns(own, recipe, drawn, made, [1, 8]))
    assert rows["records a step"] == ["64: 4 x 16 x 1", "64: 4 x 2 x 8"]
    assert rows["seconds a step"] == ["32", "4"]
    assert rows["cache on disk"] == rows["hours of filling the cache"] == ["-", "-"]
    with pytest.raises(ConfigError, match=r"`effective_batch` is 64; expected a multiple of 96 = 4 records on 24 GPUs"):
        plan.divided(own, 64, 24)


def test_the_command_prints_a_plan_or_asks_for_the_number_of_records(micro_sd, capsys):
    words = ["plan", "--pretrained_model_name_or_path", str(micro_sd), "--gpus", "1", "2"]
    assert main([*words, "--records", "1000", "--rate", "2"]) == 0  # no dataset is there yet
    printed = capsys.readouterr().out
    assert "2 records a second on one GPU: as measured" in printed
    assert "1,000 records of 2,000 pictures, 1,000 prompts" in printed
    assert main([*words, "--dataset_name", "pairs"]) == 2
    assert "--records" in capsys.readouterr().err
