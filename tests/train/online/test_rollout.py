"""Rollouts whose steps are trained: the ratio is one before the first update, on every family, and a replay that differs is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from diffalign.core.errors import ConfigError, TrainingError
from diffalign.core.types import Batch, Labels, StoredSteps
from diffalign.data.table import read_table
from diffalign.infer.sample import draw
from diffalign.methods.builders import image
from diffalign.models.adapters import add_lora, trainable
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.table import load_backbone
from diffalign.models.diffusion.path import FlowPath
from diffalign.models.diffusion.random import normal
from diffalign.models.diffusion.rollout import StepLikelihood, rollout
from diffalign.models.diffusion.rollout_plan import Branch, Cps, Ddim, FlowSde
from diffalign.models.reference import Frozen, Several
from diffalign.objectives import OBJECTIVES
from diffalign.train import align as api
from diffalign.train.online import drawing
from diffalign.train.online.ratio import log_ratio
from diffalign.train.step import one_by_one
from tests.edit_models import EDITS
from tests.micro_models import FIRSTS, MODELS, write_micro
from tests.micro_parts import SIDE
from tests.shades import add_scorer
from tests.train.online.scorers import Bright, online_config

PATHS = ("sd", "sd2", "playground", "sd3")  # a model of each: epsilon, v, EDM and velocity
FAMILIES = [name for name in FIRSTS if MODELS[name][0] not in EDITS]
POLICY = {"objective": {"clipped_ratio": {"low": 1e-3}}, "transforms": [{"list_of": {"score": "advantage"}}], "reference": "none"}
POLICY |= {"method": "diffusion_dpo", "beta": None, "rollout": {"cps": {"size": 2}}, "num_inference_steps": 3}


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)


def rolled(model, noisy, scale, seeds, steps=3):
    """Return a rollout of a model, its likelihood, and the batch of one stored step, the second, of each picture."""
    plan = noisy.plan(0, steps)
    likelihood = StepLikelihood(model.path, model.predict, plan.kind, plan.level, scale - 1.0)
    roots, shape = len(seeds) // plan.leaves, model.latent_shape(model.resolution, model.resolution)
    condition, empty = model.encode_prompt(["a red star"] * roots), model.encode_prompt([""])
    frames = torch.tensor([32.0, 32, 0, 0, 32, 32]).expand(roots, plan.leaves, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    predict = likelihood.predict(model.network, condition, empty, frames)
    noise = normal((roots, *shape), generators[:: plan.leaves])
    made = rollout(noise, predict, model.path, generators, plan, w=scale - 1.0)
    latents, *places = (x.view(roots, plan.leaves, *shape) for x in (made.latents, made.x[:, 1], made.x_to[:, 1], made.mean[:, 1]))
    stored = StoredSteps(*places, *(times[:: plan.leaves, 1] for times in (made.t, made.to_t, made.second)))
    return made, likelihood, Batch(latents, condition, empty, torch.ones(roots), frames=frames, steps=stored)


def test_the_ratio_is_one_on_every_family_with_and_without_guidance(tmp_path):
    """Each kind of noise on each path, of which alone it knows; and each family, whose own is how it is asked, on a tree and on none."""
    for name in dict.fromkeys((*PATHS, *FAMILIES)):
        kind, options = MODELS[name]
        settings = BackboneSettings(SIDE)
        model = load_backbone(str(write_micro(kind, tmp_path / name, **options)), torch.device("cpu"), settings=settings)
        flow = [FlowSde(), Branch(kind="dance", splits=(0, 1), noise_scale=4.0)] if isinstance(model.path, FlowPath) else []
        kinds, tree = (Cps(), Ddim(), Branch(splits=(0, 1)), *flow), flow[-1] if flow else Branch(splits=(0, 1))
        for scale, noisy in product((1.0, 4.0), kinds) if name in PATHS else ((1.0, Cps()), (4.0, tree)):
            made, likelihood, batch = rolled(model, noisy, scale, [3, 4, 5, 6])
            where = f"{name}, {noisy}, guidance {scale}"
            assert made.x.shape[:2] == (4, 2), where
            noise = noisy.noise_scale if isinstance(noisy, Branch) else 1.0  # by which a tree multiplies what rounding does
            assert log_ratio(likelihood, model.network, batch) <= 1e-6 * noise, where
        alone, _, _ = rolled(model, Cps(), 4.0, [4])
        beside, _, _ = rolled(model, Cps(), 4.0, [3, 4])
        assert torch.allclose(alone.latents[0], beside.latents[1], rtol=1e-4, atol=1e-4), name


def test_a_rollout_without_noise_draws_what_the_stock_sampler_draws(tmp_path):
    model = load_backbone(str(write_micro("sd3", tmp_path / "sd3")), torch.device("cpu"), settings=BackboneSettings(max_sequence_length=8))
    made, _, _ = rolled(model, Cps(level=0.0), 4.0, [3, 4])
    stock = draw(
        model.pipeline(), ["a red star"] * 2, [3, 4], num_inference_steps=3, guidance_scale=4.0, resolution=32, max_sequence_length=8
    )
    for own, other in zip(model.decode_latents(made.latents), stock, strict=True):
        assert np.abs(np.asarray(own, dtype=float) - np.asarray(other, dtype=float)).max() <= 1.0


def test_the_window_moves_on_and_the_last_step_is_never_trained():
    noisy = Cps(size=2, stay=10)
    assert [list(noisy.plan(update, 5).kept) for update in (0, 9, 10, 20, 30, 40)] == [[0, 1], [0, 1], [1, 2], [2, 3], [3], [0, 1]]
    assert list(Cps().plan(7, 4).kept) == [0, 1, 2]
    with pytest.raises(ConfigError, match="`num_inference_steps` is 1"):
        Cps().plan(0, 1)


def test_a_policy_gradient_trains_on_kept_steps_and_goes_on_after_a_kill(micro_sd, tmp_path):
    config = online_config(micro_sd, tmp_path / "whole", **POLICY)
    whole = api.train(config)
    rows = [json.loads(line) for line in (whole / "train_log.jsonl").read_text().splitlines()]
    assert [row["grad_norm"] > 0.0 for row in rows] == [True] * 4
    assert len(read_table(whole / "data")) == 4
    part = replace(config, output_dir=str(tmp_path / "part"), max_train_steps=3)
    api.train(part)
    api.train(replace(part, max_train_steps=4, resume_from_checkpoint="latest"))
    assert (tmp_path / "part" / "train_log.jsonl").read_text() == (whole / "train_log.jsonl").read_text()


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_steps_that_are_replayed_one_candidate_after_another_have_the_gradient_of_all_at_once(family, tmp_path):
    kind, options = MODELS[family]
    settings = BackboneSettings(max_sequence_length=8) if kind == "sd3" else None
    model = load_backbone(str(write_micro(kind, tmp_path / family, **options)), torch.device("cpu"), settings=settings)
    _, likelihood, batch = rolled(model, Branch(splits=(0, 1)), 4.0, [3, 4, 5, 6])
    add_lora(model.denoiser, targets=model.lora_targets, rank=2)
    model.denoiser.double()  # in float32 passes of one and of four candidates round apart
    prompts, empty, steps = (
        {name: x.double() if x.is_floating_point() else x for name, x in values.items()}
        for values in (batch.condition, batch.empty, {item.name: getattr(batch.steps, item.name) for item in fields(StoredSteps)[:-1]})
    )
    batch = replace(batch, steps=StoredSteps(**steps), condition=prompts, empty=empty)
    parameters = trainable(model.denoiser)
    batch = replace(batch, labels=Labels(columns={"advantage": torch.tensor([[1.0, -0.5, 0.25, -0.75]])}))
    query, slopes = likelihood.prepare(None, batch, []), []
    with torch.no_grad():  # away from the policy that drew, so that ratio, clip and KL have slopes
        start = likelihood.score(model.network, query)
        for place, parameter in enumerate(parameters):
            parameter.add_(0.01 * normal(tuple(parameter.shape), torch.Generator().manual_seed(place)).to(parameter))
    for score in (likelihood.score, partial(one_by_one, likelihood)):
        scores = likelihood.scores(score(model.network, query), start, batch)
        loss = OBJECTIVES["clipped_ratio"](scores, low=0.2, kl=0.1).mean()
        slopes.append(torch.autograd.grad(loss, parameters))
    largest = max(float(slope.abs().max()) for slope in slopes[0])
    assert largest > 1e-4
    assert max(float((one - other).abs().max()) for one, other in zip(*slopes, strict=True)) <= 1e-6 * largest


def test_d3po_compares_the_densities_of_kept_steps_with_the_start(micro_sd, tmp_path):
    pairs = {"transforms": [{"pairs": {"how": "best_worst"}}, "orient"], "reference": None}
    d3po = POLICY | pairs | {"objective": "clipped_dpo", "beta": 0.1, "rollout": {"ddim": {"size": 2}}}
    run = api.train(online_config(micro_sd, tmp_path / "run", **d3po))
    rows = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(np.log(2.0), abs=1e-5)  # policy and start are one
    assert rows[0]["log_ratio/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert abs(rows[-1]["log_ratio/chosen"]) > 1e-5


def test_the_kl_of_steps_is_from_the_start_where_the_reference_is_another(micro_sd):
    model = load_backbone(str(micro_sd), torch.device("cpu"))
    _, likelihood, batch = rolled(model, Cps(), 4.0, [3])
    query, other = likelihood.prepare(None, batch, []), copy.deepcopy(model.network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
        policy = likelihood.score(model.network, query)
    for reference, near in ((Frozen(other), False), (Several(Frozen(other), start=Frozen(model.network)), True)):
        scores = likelihood.scores(policy, reference.score(likelihood, query), batch)
        assert bool(scores.steps.kl.abs().max() <= 1e-9) == near
        assert scores.log_ratio.abs().max() > 1e-6


def with_dropout(monkeypatch):
    """Let the network have a layer that drops numbers in training mode."""
    equip = image.equip

    def dropped(layer, _, output):
        return torch.nn.functional.dropout(output, 0.5) if layer.training else output

    def equipped(*args, **options):
        equip(*args, **options)
        args[2].denoiser.conv_in.register_forward_hook(dropped)

    monkeypatch.setattr(image, "equip", equipped)


def without_guidance(monkeypatch):
    """Let the rollout draw without guidance."""
    monkeypatch.setattr(drawing, "rollout", lambda *args, **options: rollout(*args, **(options | {"w": 0.0})))


def with_other_weights(monkeypatch):
    """Let the network be another one when the steps are replayed."""
    score = StepLikelihood.score

    def replayed(self, model, query):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        return score(self, model, query)

    monkeypatch.setattr(StepLikelihood, "score", replayed)


@pytest.mark.parametrize(
    ("breaking", "cause"),
    [(with_dropout, "`lora_dropout`"), (without_guidance, "replay is guided"), (with_other_weights, "network, prompts, times")],
)
def test_a_replay_that_differs_is_refused_by_what_has_broken_it(micro_sd, tmp_path, monkeypatch, breaking, cause):
    breaking(monkeypatch)
    with pytest.raises(TrainingError, match=rf"turn 0.*{cause}"):
        api.train(online_config(micro_sd, tmp_path / "run", **POLICY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"cps": {"size": 3}}, "num_inference_steps": 5}, "keeps 3 steps, .* 2 times"),
        ({"rollout": "dpm"}, "there is no rollout `dpm`"),
        ({"rollout": {"cps": {"levle": 1}}}, "Did you mean `level`"),
        ({"objective": {"clipped_ratio": {"low": 2e-6, "trust": "guard"}}}, "`trust: guard` corrects .* choose flow_sde or ddim"),
        ({"objective": "dpo", "beta": 100.0, "reference": None}, "which objective `dpo` does not read"),
        ({"trajectory": {"forward": {"noisiest": 0.5}}}, "`trajectory` says where"),
    ],
)
def test_rollouts_that_cannot_be_meant_are_refused_before_a_model_loads(micro_sd, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("diffalign.methods.builders.image.backbone", None)
    with pytest.raises(ConfigError, match=message):
        api.train(online_config(micro_sd, tmp_path / "run", **(POLICY | changes)))
