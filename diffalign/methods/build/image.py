"""From a config to the parts that the trainer runs. The only place that knows all tables."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from diffalign.core.errors import ConfigError
from diffalign.core.parts import Index, Pairs, Parts
from diffalign.core.specs import bind
from diffalign.core.types import Reference, Scores
from diffalign.data.batch import CachedPairs, Encoders, LivePairs
from diffalign.data.curriculum import CURRICULA, Stages
from diffalign.data.pixels import Framing
from diffalign.data.users import UserPairs, Users
from diffalign.data.view import View
from diffalign.methods import METHODS
from diffalign.methods.build import reward as rewardbuild
from diffalign.methods.build import speed
from diffalign.methods.build import text as textbuild
from diffalign.methods.build import users as personalise
from diffalign.methods.build.bind import DTYPES, beta_of, driver, error, objective, settings, trajectory
from diffalign.methods.build.data import check_data
from diffalign.methods.checks import check_family, check_sides
from diffalign.methods.config import TrainConfig
from diffalign.models import adapters
from diffalign.models.backbones.base import Backbone
from diffalign.models.backbones.table import check_guided, load_backbone, load_denoiser, model_index
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.path import VPPath
from diffalign.models.diffusion.self_rollout import self_rollout
from diffalign.models.reference import AdapterOff, Frozen, NoReference, Start
from diffalign.models.trajectory_cache import Precomputed, network_facts
from diffalign.models.users import branch
from diffalign.models.users.attach import encoder_of
from diffalign.models.users.encoders import Sizes
from diffalign.objectives import facts


def check(config: TrainConfig) -> None:
    """Raise ConfigError for parts that cannot be meant, by one step on one number; nothing is loaded."""
    check_data(config)
    loss, way, distance, runs = objective(config), trajectory(config), error(config), driver(config)
    compares = config.compares
    if runs == "reference" and not compares:
        raise ConfigError(f"the trajectory's driver is reference, and `{config.method}` has none; use driver policy or ema")
    if config.trajectory_cache:
        _check_kept(config, runs)
    path = VPPath.from_config({})
    kept = 0 if way.keywords.get("start", "noise") == "noise" and way.func is self_rollout else 2
    noised = way(torch.zeros(1, kept, 1, 1, 1), lambda x, _, /, *, empty=False: x, path, torch.Generator())  # noqa: ARG005  # answers with its input
    scores = distance(path, noised, noised.x_t)
    ((name, _),) = config.part("objective").items()
    needed = facts(name)
    if scores.shape[1] == 1 and needed.candidates > 1:
        raise ConfigError("self_rollout gives one picture a record, and the objective compares two; set objective to denoise")
    if not needed.tokens:
        scores = scores[:, :1].expand(1, max(scores.shape[1], needed.candidates))
        columns = dict.fromkeys(needed.columns, torch.zeros_like(scores))
        loss(Scores(scores, scores if compares else None, lengths=torch.ones_like(scores), columns=columns))


def _check_kept(config: TrainConfig, runs: str) -> None:
    """Raise ConfigError for points that cannot be kept, or would be stale as soon as training has begun."""
    (name,) = config.part("trajectory")
    if name != "ddim_inversion" or runs != "reference":
        raise ConfigError(
            f"`trajectory_cache` keeps inversions driven by the reference; this trajectory is {name}, driven by the {runs}; "
            "give {ddim_inversion: {driver: reference, ...}}"
        )
    if config.cache == "off" or config.cache_variants > config.trajectory_cache:
        raise ConfigError("`trajectory_cache` needs `cache` disk, and at least as many points as there are `cache_variants`")


def backbone(config: TrainConfig, device: torch.device) -> Backbone:
    """Return the loaded model, frozen."""
    check_family(config, model_index(config.pretrained_model_name_or_path, config.revision, config.variant)[1])
    if METHODS[config.method].inference == "negative_guidance":
        check_guided(config.pretrained_model_name_or_path, config.revision)
    return load_backbone(
        config.pretrained_model_name_or_path,
        device,
        precision=DTYPES[config.mixed_precision],
        full=config.tuning == "full",
        settings=settings(config),
        revision=config.revision,
        variant=config.variant,
        vae=config.pretrained_vae_model_name_or_path,
        quantization=speed.quantization_config(config),
    )


def equip(config: TrainConfig, model: Backbone, *, known: personalise.UserEvidence | Sizes | None = None, kernels: bool = True) -> None:
    """Attach what is trained to a frozen model, or make every weight of its denoiser trainable; switch on what saves memory and time.

    `known` is what the user encoder reads. Without `kernels`, nothing that this machine may lack.
    """
    if config.tuning == "full":
        model.denoiser.requires_grad_(True)
    elif config.tuning == "user":
        personalise.attach(config, model, known or Sizes())
    else:
        torch.manual_seed(config.seed)
        adapters.add_lora(
            model.denoiser,
            targets=config.lora_layers or model.lora_targets,
            rank=config.rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            dora=config.tuning == "dora",
        )
    speed.apply(config, model.denoiser, kernels=kernels)


def start(config: TrainConfig, model: Backbone) -> dict[str, str]:
    """Put the result of the run `start_from` into what is trained, if there is one; return the fact that tells it from others.

    A hash over its weights (their first numbers). Raises CheckpointError for weights of another adapter.
    """
    if config.start_from is None:
        return {}
    adapters.load_result(model.denoiser, Path(config.start_from), full=config.tuning == "full", component=model.component)
    digest = hashlib.sha256()
    for parameter in adapters.trainable(model.denoiser):
        digest.update(parameter.detach().flatten()[:256].double().cpu().numpy().tobytes())
    return {"start": digest.hexdigest()}


def reference(config: TrainConfig, model: Backbone, device: torch.device) -> Reference:
    """Return what the policy is compared with; a second network exists only for full fine-tuning against the starting point."""
    if not config.compares:
        return NoReference()
    if config.tuning != "full":
        if config.start_from is not None:
            return Start.of(model.denoiser)
        return AdapterOff(model.denoiser, branch.disabled if config.tuning == "user" else adapters.disabled)
    frozen = load_denoiser(config.pretrained_model_name_or_path, revision=config.revision, variant=config.variant)
    if config.start_from is not None:
        adapters.load_result(frozen, Path(config.start_from), full=True, component=model.component)
    frozen.to(device)
    # Autocast would make these half at every call; norms stay float32, as in the policy. So the two agree to the bit at step 0.
    for layer in frozen.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(DTYPES[config.mixed_precision])
    speed.apply(config, frozen)
    return Frozen(frozen)


def pairs(config: TrainConfig, view: View, model: Backbone) -> LivePairs | CachedPairs:
    """Return the training data, cached on disk (filled now) or live."""
    check_sides(config.buckets, model.component)
    framing = Framing(config.resolution or model.resolution, config.random_crop, config.random_flip, config.buckets)
    encoders = Encoders(model.encode_image, model.encode_prompt, model.latent_shape, model.fingerprint())
    if config.cache == "off":
        return LivePairs(view, encoders, framing, config.cache_variants)
    return CachedPairs(view, encoders, framing, config.cache_variants, textbuild.cache_root(config, view))


def order(config: TrainConfig, view: View) -> Callable[[int], Index] | None:
    """Return which record a sample is, where the config gives the training an order. Raises as the curriculum does."""
    if config.curriculum is None:
        return None
    stages = bind("curriculum", CURRICULA, config.curriculum)(view)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    samples = config.max_train_steps * config.train_batch_size * config.gradient_accumulation_steps * processes
    return Stages(stages, samples, config.seed).index


def parts(config: TrainConfig, view: View, device: torch.device, *, fit: bool = True) -> Parts:
    """Return the parts of a run. Names and constants are bound before weights load.

    Without `fit`, for weights that others will replace, an encoder of pairs is not fitted to its evidence.
    """
    check(config)
    if METHODS[config.method].inference == "reward":
        loss = objective(config)
        own = rewardbuild.parts(config, view, device, beta_of(loss) or 1.0)
        known = {"groups": own.groups, "measure": own.measure, "facts": own.facts}
        return Parts(own.model, own.likelihood, NoReference(), loss, own.pairs, index=order(config, view), **known)
    if view.table.manifest["kind"] == "text":
        language_model, said, compared, texts = textbuild.parts(config, view, device)
        own = textbuild.told(config, texts)
        return Parts(language_model, said, compared, objective(config), texts, index=order(config, view), facts=own)
    model = backbone(config, device)
    users = None if config.users is None else Users.of(view, config.seed)
    known = None if users is None else personalise.evidence(config, model, view, users, textbuild.cache_root(config, view))
    equip(config, model, known=known if fit or known is None else known.sizes)
    begun = start(config, model)
    likelihood = DiffusionLikelihood(model.path, model.predict, trajectory(config), config.proportion_empty_prompts, error(config))
    compared = reference(config, model, device)
    data: Pairs = _with_points(config, pairs(config, view, model), model, likelihood, compared, device, begun)
    made = functools.partial(Parts, model, likelihood, compared, objective(config), facts=begun)
    if users is None or known is None:
        return made(data, driver(config), order(config, view))
    data = UserPairs(data, users, known, config.user_dropout)
    return made(data, driver(config), users.index, encoder_of(model.denoiser).penalty)


def _with_points(
    config: TrainConfig,
    data: LivePairs | CachedPairs,
    model: Backbone,
    likelihood: DiffusionLikelihood,
    compared: Reference,
    device: torch.device,
    begun: Mapping[str, str],
) -> Pairs:
    """Return the data with points of the trajectory computed before training, if the config asks for them."""
    if not config.trajectory_cache or not isinstance(data, CachedPairs):
        return data
    constants = {name: p.default for name, p in inspect.signature(likelihood.trajectory).parameters.items() if p.kind is p.KEYWORD_ONLY}
    facts = network_facts(model) | {"settings": asdict(settings(config)), "trajectory": constants, "precision": config.mixed_precision}
    facts |= begun
    return Precomputed(data, likelihood, compared, config.trajectory_cache, config.seed, facts, device)
