"""Every objective that carries over to images trains the embedded model: two steps, adapters alone, a lower loss at the same noise."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch

import diffalign
from diffalign.core.types import Labels
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.world.captions import random_caption
from diffalign.data.world.scenes import random_scene, render
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.image import parts as build_parts
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.adapters import trainable
from diffalign.models.reference import NoReference
from diffalign.objectives import OBJECTIVES, bind_objective
from diffalign.train.step import preference_step
from tests.paths import ASSETS

MODEL = ASSETS / "tiny-sd"
# Objectives of sampler steps train in tests/train/online; `distil` keeps a policy where it starts: tests/train/test_anchor.py.
ON_IMAGES = sorted(name for name, one in OBJECTIVES.items() if one.facts.diffusion != "N" and not one.facts.steps and name != "distil")
LIST = 4
# Of the size that half an error asks for; those with defaults keep them.
CONSTANTS = {"beta": 500.0, "beta_plus": 500.0, "beta_minus": 250.0, "eta": 500.0, "tau": 500.0, "gamma": 0.5, "own_weight": 1.0}
OTHERS = {"adpo": {"tau": 0.002}, "adpo_list": {"tau": 0.002}, "discopop": {"beta": 50.0}}  # discopop has a valley 0.2 wide


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Four ranked pictures to each of four prompts, with a score."""
    rng, records = np.random.default_rng(0), []
    for i in range(4):
        scenes = [random_scene(rng) for _ in range(LIST)]
        candidates = []
        for rank, scene in enumerate(scenes):
            render(scene, rng).save(file := BytesIO(), "PNG")
            candidates.append(Candidate(image=file.getvalue(), rank=float(rank), scores={"taste": 1.0 - rank / LIST}))
        records.append(Record(f"{i}", random_caption(scenes[0], rng), tuple(candidates)))
    folder = tmp_path_factory.mktemp("ranked") / "table"
    write_table(folder, records)
    return folder


OPTIONS = {"transforms": [{"list_of": {"candidates": LIST}}], "train_batch_size": 2, "max_train_steps": 2, "learning_rate": 1e-3, "rank": 2}


@pytest.fixture(scope="module")
def setting(table, tmp_path_factory):
    """Return the parts of a run on the embedded model, and a batch of two records of four pictures."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    given = {"pretrained_model_name_or_path": str(MODEL), "dataset_name": str(table), "output_dir": str(folder)}
    asked = TrainConfig(**given, objective={"infonca": {"beta": 500.0}}, **OPTIONS)
    parts = build_parts(asked, recipe := recipe_of(asked), open_dataset(asked, recipe), torch.device("cpu"))
    return parts, parts.pairs.to_batch([parts.pairs[i, 0] for i in range(2)])


def bound(name):
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    needed = {p.name: CONSTANTS[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    return bind_objective({name: needed | OTHERS.get(name, {})})


def told(name, batch):
    """Return the batch with as many candidates as the objective reads, and the columns that it needs."""
    needs = OBJECTIVES[name].facts
    count = LIST if needs.diffusion == "L" else needs.candidates
    ramp = torch.linspace(1.0, 0.0, count).expand(2, count)
    values = {"gains": ramp, "margin": 0.1 * ramp, "hallucinated": 1.0 - ramp, "previous": -0.1 * ramp, "teacher": -ramp - 0.5}
    values["advantage"] = 2.0 * ramp - 1.0
    columns = {column: values[column] for column in (needs.columns or (("gains",) if needs.diffusion == "L" else ()))}
    return replace(batch, x0=batch.x0[:, :count], frames=batch.frames[:, :count], labels=Labels(columns=columns))


def taken(parts, batch):
    """Return the losses before each of two optimiser steps and after them, at one noise, and the gradient's size before the first."""
    denoiser, losses, sizes = parts.backbone.denoiser, [], []
    optimizer = torch.optim.AdamW(trainable(denoiser), lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        loss, _ = preference_step(
            parts, denoiser, batch, torch.Generator().manual_seed(0), lambda: contextlib.nullcontext(denoiser), sequential=False
        )
        losses.append(loss.item())
        if len(losses) < 3:
            loss.backward()
            sizes.append(sum(float(p.grad.abs().sum()) for p in trainable(denoiser)))
            optimizer.step()
    return losses, sizes[0]


@pytest.fixture
def before(setting):
    """The weights by name, which are put back afterwards."""
    denoiser = setting[0].backbone.denoiser
    weights = {key: value.detach().clone() for key, value in denoiser.named_parameters()}
    yield weights
    with torch.no_grad():
        for key, value in denoiser.named_parameters():
            value.copy_(weights[key])


@pytest.mark.parametrize("name", ON_IMAGES)
def test_it_trains_an_adapter_of_the_embedded_model(setting, before, name):
    parts, batch = setting
    denoiser, learnt = parts.backbone.denoiser, {id(p) for p in trainable(parts.backbone.denoiser)}
    compared = parts.reference if OBJECTIVES[name].facts.reference else NoReference()
    likelihood = replace(parts.likelihood, residuals=OBJECTIVES[name].facts.residuals)
    asked = replace(parts, recipe=replace(parts.recipe, objective=bound(name)), reference=compared, likelihood=likelihood)
    losses, size = taken(asked, told(name, batch))
    assert all(math.isfinite(loss) for loss in losses)
    assert size > 0.0
    assert losses[-1] < losses[0] or name == "awm"  # the value of whose ratio, to the policy as it is, is always one
    for key, value in denoiser.named_parameters():
        assert torch.equal(value, before[key]) == (id(value) not in learnt)


@pytest.mark.parametrize("objective", [{"rank_dpo": {"beta": 500.0}}, {"plackett_luce": {"beta": 500.0}}])
def test_a_list_trains_by_name_from_a_table_of_ranked_pictures(table, tmp_path, objective):
    folder = diffalign.align(MODEL, table, output_dir=tmp_path / "run", objective=objective, **OPTIONS)
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in log)
