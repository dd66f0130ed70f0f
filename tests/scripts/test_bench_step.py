"""The benchmark's arithmetic: operations counted as by hand, ratios within a round, and a table that reads."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear

from diffalign.data.sampler import Sampler, loader
from diffalign.methods.builders import image as build
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from scripts.bench_step import VARIANTS, flops, render_table, step_flops, table_rows

CPU = torch.device("cpu")


def test_a_multiply_add_is_two_operations():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: left @ right) == 2 * 3 * 5 * 7


def test_attention_is_its_two_matmuls():
    q, k = torch.ones(1, 2, 6, 8), torch.ones(1, 2, 4, 8)
    assert flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k)) == 2 * (2 * 2 * 6 * 4 * 8)


@pytest.fixture
def parts(micro_sd, pairs_file, tmp_path):
    config = TrainConfig(pretrained_model_name_or_path=str(micro_sd), dataset_name=str(pairs_file), output_dir=str(tmp_path), rank=2)
    return build.parts(config, recipe := recipe_of(config), open_dataset(config, recipe), CPU)


def batch(parts, records):
    return next(loader(parts.pairs, Sampler(len(parts.pairs), records, 1, 1, 0, 0), 0, 1))


def test_the_floor_is_policy_and_backward_and_reference_and_grows_with_the_batch(parts):
    policy = parts.backbone.denoiser
    widths = []
    # The adapter of a linear layer: down to rank 2 and up again, for every position of its input.
    hooks = [
        layer.register_forward_hook(lambda m, x, _: widths.append(x[0].shape[:-1].numel() * (m.in_features + m.out_features)))
        for layer in policy.modules()
        if isinstance(layer, Linear)
    ]
    query = parts.likelihood.prepare(policy, batch(parts, 2), torch.Generator().manual_seed(0))
    forward = flops(lambda: parts.likelihood.score(policy, query))
    for hook in hooks:
        hook.remove()
    adapter = 2 * 2 * sum(widths)
    assert adapter > 0
    assert step_flops(parts, policy, batch(parts, 2), backward=1) == 2 * forward + (forward - adapter)
    assert step_flops(parts, policy, batch(parts, 2), backward=2) == 3 * forward + (forward - adapter)
    assert step_flops(parts, policy, batch(parts, 4), backward=1) == 2 * (2 * forward + (forward - adapter))


def test_ratios_are_taken_within_a_round_and_the_table_shows_them():
    # Live takes 2, 6 and 3 times ours, so 3; the medians of the seconds alone (1.2 and 0.2) would say 6.
    rounds = [{"ours": s, "live": n * s, "full": 2 * s} for s, n in ((0.1, 2), (0.2, 6), (0.4, 3))]
    rows = table_rows(rounds, {"LoRA": 0.05, "full": 0.1}, {"base": 100.0, "ours": 500.0})
    by_label = {row.label: row for row in rows}
    live, full = by_label[VARIANTS["live"].label], by_label[VARIANTS["full"].label]
    assert (live.seconds, live.ratio, live.floor_ratio) == pytest.approx((1.2, 3.0, 24.0))
    assert (full.ratio, full.floor_ratio) == pytest.approx((2.0, 4.0))
    assert by_label["floor, LoRA"].ratio == pytest.approx(0.25)
    lines = render_table(rows).splitlines()
    assert lines[0].split() == ["s/step", "x", "ours", "x", "floor", "peak", "MiB"]
    assert lines[1].endswith("0.2000    1.00     4.00       500")
    assert lines[2].endswith("1.2000    3.00    24.00         -")
    assert len({len(line) for line in lines}) == 1
