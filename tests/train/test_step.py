"""Candidates one after another give the gradient of all at once, and hold the activations of one."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef

from diffalign.data.sampler import sample_generator
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.image import parts as build_parts
from diffalign.methods.recipe import recipe_of
from diffalign.models.adapters import trainable
from diffalign.models.reference import Frozen
from diffalign.train.step import one_by_one, preference_step
from diffalign.train.trainer import trainer_for
from tests.train.configs import small_config

CPU = torch.device("cpu")


@pytest.fixture
def config(micro_sd, pairs_file, tmp_path):
    return small_config(micro_sd, pairs_file, tmp_path / "run", max_train_steps=2, train_batch_size=4, beta=50.0)


def setting(config, batch_size=4):
    """Return (parts, batch, driving) in float64, with an adapter that already says something."""
    parts = build_parts(config, recipe := recipe_of(config), open_dataset(config, recipe), CPU)
    denoiser = parts.backbone.denoiser.double().train()
    if isinstance(parts.reference, Frozen):
        parts.reference.model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(denoiser):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return parts, parts.pairs.to_batch([parts.pairs[i, 0] for i in range(batch_size)])


def step(parts, batch, **options):
    """Return (loss, scores, gradient of every trained number) of one step at seeds of its records' own."""
    denoiser = parts.backbone.denoiser
    denoiser.zero_grad()
    generators = [sample_generator(0, position) for position in range(len(batch.x0))]
    driving = lambda: contextlib.nullcontext(denoiser)  # noqa: E731  # as the trainer's: called, it gives a block
    loss, scores = preference_step(parts, denoiser, batch, generators, driving, **options)
    loss.backward()
    return loss.detach(), scores, torch.cat([p.grad.flatten() for p in trainable(denoiser)])


OBJECTIVES = {
    "dpo": {},
    "smpo": {"objective": {"smpo": {"beta": 5.0}}, "beta": None},
    "mapo": {"method": "mapo", "beta": None},
    "ipo": {"objective": {"ipo": {"tau": 1.0}}, "beta": None},
    "inpo": {"method": "inpo", "trajectory": {"ddim_inversion": {"steps": 2}}},
    "dspo": {"objective": {"dspo": {"beta": 0.5}}, "beta": None},
    "sdpo": {"sdpo_mu": 0.9},
    "sdpo of a batch": {"sdpo_mu": 0.2, "sdpo_scale": "batch", "objective": {"ipo": {"tau": 1.0}}, "beta": None},
    "diffusion_kto": {"objective": "diffusion_kto"},
    "checkpointed": {"gradient_checkpointing": True},
    "full": {"train_method": "full"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_candidates_in_turn_have_the_gradient_of_all_at_once(config, name):
    parts, batch = setting(replace(config, **OBJECTIVES[name]))
    loss, scores, gradient = step(parts, batch)
    again, same, in_turn = step(parts, batch, sequential=True)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(in_turn, gradient, rtol=1e-6, atol=1e-9 * gradient.abs().max().item())
    torch.testing.assert_close(again, loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(same.policy, scores.policy, rtol=1e-9, atol=0)


def test_the_policy_runs_once_more_and_on_half_the_images(config):
    parts, batch = setting(config)
    seen = []
    parts.backbone.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), torch.is_grad_enabled())))
    step(parts, batch)
    reference, policy = (8, False), (8, True)
    assert seen == [reference, policy]
    seen.clear()
    step(parts, batch, sequential=True)
    assert seen == [reference, *[(4, True)] * 4]


def test_activations_of_one_candidate_live_at_a_time(config):
    parts, batch = setting(config)
    query = parts.likelihood.prepare(None, batch, torch.Generator())
    denoiser, born, alive = parts.backbone.denoiser, [], []
    layer = denoiser.mid_block.attentions[0].transformer_blocks[0].norm1  # the adapter behind it keeps its output for the backward pass

    def watch(*given):
        alive.append(sum(not memory.expired() for memory in born))
        born.append(StorageWeakRef(given[2].untyped_storage()))

    layer.register_forward_hook(watch)
    scores = one_by_one(parts.likelihood, denoiser, query)
    assert alive == [0, 0]
    scores.sum().backward()
    assert alive == [0, 0, 0, 0]
    joint = [parts.likelihood.score(denoiser, query.candidate(k)) for k in range(2)]
    assert alive[4:] == [0, 1], "without it both would live"
    del joint


def test_candidates_in_turn_keep_their_own_frames(config):
    parts, batch = setting(config, 3)
    query = parts.likelihood.prepare(None, batch, torch.Generator())
    assert query.frames.shape == (3, 2, 6)
    assert all(torch.equal(query.candidate(k).frames, query.frames[:, k : k + 1]) for k in range(2))
    assert replace(query, frames=None).candidate(1).frames is None


def test_dropout_of_the_adapter_falls_alike_in_both_passes(config):
    parts, batch = setting(replace(config, lora_dropout=0.5))
    denoiser, likelihood = parts.backbone.denoiser, parts.likelihood
    query = likelihood.prepare(None, batch, torch.Generator().manual_seed(3))
    gradients = []
    for score in (
        lambda: one_by_one(likelihood, denoiser, query),
        lambda: torch.cat([likelihood.score(denoiser, query.candidate(k)) for k in range(2)], dim=1),
    ):
        denoiser.zero_grad()
        torch.manual_seed(5)
        (score() * torch.tensor([1.0, -2.0])).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(denoiser)]))
    torch.testing.assert_close(*gradients)


def test_the_trainer_gives_the_same_weights_in_turn(config, tmp_path):
    # The step is linear in the gradient and beta small: see test_trainer.py.
    config = replace(config, adam_epsilon=1.0, learning_rate=1.0, beta=10.0, gradient_accumulation_steps=2)
    weights, logs = [], []
    for sequential in (False, True):
        folder = trainer_for(replace(config, sequential_candidates=sequential, output_dir=str(tmp_path / str(sequential)))).fit()
        weights.append(load_file(folder / "pytorch_lora_weights.safetensors"))
        logs.append([json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()])
    assert max(value.abs().max() for name, value in weights[0].items() if "lora_B" in name) > 1e-3
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) <= 1e-6
    for joint, turn in zip(*logs, strict=True):
        assert turn["loss"] == pytest.approx(joint["loss"], abs=1e-6)
        assert turn["grad_norm"] == pytest.approx(joint["grad_norm"], rel=1e-4)
