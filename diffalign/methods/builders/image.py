"""From a recipe to the parts that train an image generator."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffalign.core.parts import Pairs
from diffalign.core.processes import spreads_weights
from diffalign.core.types import Likelihood, Reference
from diffalign.data.batch import CachedPairs, Encoders, LivePairs
from diffalign.data.inputs import InputEncoders
from diffalign.data.pixels import Framing
from diffalign.data.users import UserPairs, Users
from diffalign.data.view import View
from diffalign.methods.builders import lora, speed
from diffalign.methods.builders import users as user_build
from diffalign.methods.builders.caching import keeps
from diffalign.methods.builders.common import DTYPES, cache_precision, cache_root, filling_workers, order
from diffalign.methods.checks import check_image, parse_buckets
from diffalign.methods.config import TrainConfig
from diffalign.methods.edits import check_inputs, inputs_of
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models import adapters
from diffalign.models.backbones.base import Backbone, BackboneSettings
from diffalign.models.backbones.folders import is_local, resolve
from diffalign.models.backbones.table import check_guided, load_backbone, load_denoiser, model_index
from diffalign.models.controlled import Controlled
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.neighbours import NeighbourLikelihood
from diffalign.models.lora_layers import Switch
from diffalign.models.prompted import networks, text_encoders
from diffalign.models.reference import AdapterOff, Frozen, NoReference, Several, Start
from diffalign.models.sharded import is_sharded, shard
from diffalign.models.trajectory_cache import Precomputed, network_facts
from diffalign.models.users import branch
from diffalign.models.users.attach import encoder_of
from diffalign.models.users.encoders import Sizes
from diffalign.models.weights import tensors_hash

logger = logging.getLogger(__name__)


def settings(config: TrainConfig) -> BackboneSettings:
    """Return what `config` says about the backbone."""
    flow = {"density": config.weighting_scheme, "transport": config.transport}
    flow |= {name: getattr(config, name) for name in ("logit_mean", "logit_std", "mode_scale")}
    if config.shift is not None:
        flow["shift"] = config.shift
    buckets = parse_buckets(config.aspect_ratio_buckets)
    side = config.resolution or (round(max(height * width for height, width in buckets) ** 0.5) if buckets else None)
    return BackboneSettings(side, config.max_sequence_length, config.guidance_scale, flow)


def backbone(config: TrainConfig, recipe: Recipe, device: torch.device) -> Backbone:
    """Return the loaded model, frozen."""
    name = config.pretrained_model_name_or_path
    if not is_local(resolve(name)):  # of which nothing was known before
        check_image(config, recipe, model_index(name, config.revision)[1])
    if recipe.inference == "negative_guidance":
        check_guided(config.pretrained_model_name_or_path, config.revision)
    return load_backbone(
        config.pretrained_model_name_or_path,
        device,
        precision=DTYPES[config.mixed_precision],
        full=(recipe.tuning == "full" and not config.full_bf16)
        or (recipe.tuning == "controlnet" and config.controlnet_model_name_or_path is None),
        settings=settings(config),
        revision=config.revision,
        variant=config.variant,
        vae=config.pretrained_vae_model_name_or_path,
        quantization=speed.quantization_config(config),
        denoiser=None if config.denoiser is None else Path(config.denoiser),
        base_loras=lora.base_loras(config),
        check=False,
        spread=spreads_weights(),
    )


def equip(
    config: TrainConfig, recipe: Recipe, model: Backbone, *, evidence: user_build.UserEvidence | Sizes | None = None, kernels: bool = True
) -> None:
    """Attach what is trained to a frozen model, or make every weight of its denoiser trainable; switch on what saves memory and time.

    `evidence` is what the user encoder reads, or its sizes. Without `kernels`, nothing that this machine may lack.
    """
    if recipe.tuning == "full":
        model.denoiser.requires_grad_(True)
    elif recipe.tuning == "controlnet":
        torch.manual_seed(config.seed)
        model.control(config.controlnet_model_name_or_path)
    elif recipe.tuning == "user":
        user_build.attach(config, recipe, model, evidence or Sizes())
    else:
        lora.add_adapters(config, recipe, model)
    for network in networks(model.denoiser):
        speed.apply(config, network, kernels=kernels)
    for encoder in text_encoders(model.denoiser).values():
        if config.gradient_checkpointing:
            speed.checkpoint_layers(encoder)


def goes_on(config: TrainConfig) -> bool:
    """Return whether what is trained has been trained before, so that the reference is its start and not the base."""
    return any(start is not None for start in (config.start_from, config.start_from_lora, config.controlnet_model_name_or_path))


def start(config: TrainConfig, recipe: Recipe, model: Backbone) -> dict[str, Any]:
    """Put the result of the run `start_from` into what is trained, if there is one; return the facts that tell the start from others.

    A hash over the first numbers of its weights, by which a checkpoint knows where its run began, and the LoRA files in its base.
    Raises CheckpointError for weights of another adapter.
    """
    facts: dict[str, Any] = {"base_lora": [lora.facts() for lora in lora.base_loras(config)]} if config.base_lora else {}
    if not goes_on(config):
        return facts
    if config.start_from is not None:
        adapters.load_results(model.adapted, Path(config.start_from), full=recipe.tuning == "full", untrained=True)
    digest = hashlib.sha256()
    for parameter in adapters.trainable(model.denoiser):
        digest.update(parameter.detach().flatten()[:256].double().cpu().numpy().tobytes())
    return facts | {"start": digest.hexdigest()}


def reference(config: TrainConfig, recipe: Recipe, model: Backbone, device: torch.device) -> Reference:
    """Return what the policy is compared with; a second network exists only for full fine-tuning against the starting point.

    A drift term is measured from the base where the reference is an old policy, or an adapter that was trained before. A loss that bounds
    how far scores move is compared with the network that drew a turn, too, where a turn has more than one update; the first finds it
    unmoved.
    """
    compared = _reference(config, recipe, model, device)
    if not (recipe.bounded and config.prompts and config.updates_per_turn > 1):
        return compared
    several = compared if isinstance(compared, Several) else Several(compared)
    follows = config.rollout_policy == "policy" and config.reference == "old_policy" and not config.old_policy_decay
    drew = several.reference if follows or config.rollout_policy == "reference" else Start.of(model.denoiser)
    return replace(several, old=drew)


def _reference(config: TrainConfig, recipe: Recipe, model: Backbone, device: torch.device) -> Reference:
    """Return what the policy is compared with, but for the network that drew."""
    if not recipe.compares:
        return NoReference()
    moves = config.reference == "old_policy"
    if recipe.tuning == "controlnet":
        return Start.of(model.denoiser)
    if recipe.tuning != "full":
        base = AdapterOff(model.denoiser, partial(branch.disabled, model.denoiser) if recipe.tuning == "user" else Switch(model.denoiser))
        if not goes_on(config) and not moves:
            return base
        start = Start.of(model.denoiser)
        return Several(start, start=base) if recipe.drifts else start
    if moves and not recipe.drifts:
        return Start.of(model.denoiser)
    frozen = load_denoiser(config.pretrained_model_name_or_path, revision=config.revision, variant=config.variant)
    # Autocast would make these half at every call; norms stay float32, as in the policy. So the two agree to the bit at step 0.
    for layer in frozen.modules():
        if config.full_bf16 or isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(DTYPES[config.mixed_precision])
    frozen = shard(frozen) if is_sharded(model.denoiser) else frozen.to(device)
    frozen.load_state_dict(model.denoiser.state_dict())  # with what is fused into it, or was trained before
    speed.apply(config, frozen)
    return Several(Start.of(model.denoiser), start=Frozen(frozen)) if moves else Frozen(frozen)


def likelihood_of(config: TrainConfig, recipe: Recipe, model: Backbone) -> DiffusionLikelihood:
    """Return how the denoiser scores pictures."""
    return DiffusionLikelihood(
        model.path, model.predict, recipe.trajectory, config.proportion_empty_prompts, recipe.error, recipe.residuals
    )


def with_neighbours(recipe: Recipe, likelihood: DiffusionLikelihood) -> Likelihood:
    """Return the likelihood, which scores under the neighbours' prompts, too, where the loss reads that."""
    return NeighbourLikelihood(likelihood) if recipe.neighbours else likelihood


def pairs(config: TrainConfig, view: View, model: Backbone) -> LivePairs | CachedPairs:
    """Return the training data, cached on disk (filled now) or live."""
    buckets = parse_buckets(config.aspect_ratio_buckets)
    framing = Framing(config.resolution or model.resolution, config.random_crop, config.random_flip, buckets)
    inputs = input_encoders(model) if inputs_of(view) else None
    encoders = Encoders(model.encode_image, model.prompt_for_training, model.latent_shape, model.fingerprint(), inputs)
    conditioned = isinstance(model.denoiser, Controlled)
    if not keeps(config, view, encoders, framing):
        return LivePairs(view, encoders, framing, config.cache_variants, conditioned=conditioned)
    return CachedPairs(
        view,
        encoders,
        framing,
        config.cache_variants,
        cache_root(config, view),
        precision=cache_precision(config),
        workers=filling_workers(config, next(model.denoiser.parameters()).device),
        conditioned=conditioned,
    )


def input_encoders(model: Backbone) -> InputEncoders | None:
    """Return how an edit model reads its input pictures, None of any other model."""
    if model.picture == "none":
        return None
    return InputEncoders(model.reference_size, model.seen_size, model.encode_reference, model.encode_edit)


def parts(config: TrainConfig, recipe: Recipe, view: View, device: torch.device, *, fit: bool = True) -> Parts:
    """Return the parts of a run.

    Without `fit`, for weights that others will replace, an encoder of pairs is not fitted to its evidence.
    """
    name = config.pretrained_model_name_or_path
    if not is_local(resolve(name)):  # the data of a folder's model have been checked by its layout
        check_inputs(view, model_index(name, config.revision)[1])
    model = backbone(config, recipe, device)
    users = Users.of(view, config.seed) if recipe.users is not None and recipe.users().of_users else None
    evidence = None if recipe.users is None else user_build.evidence(recipe, model, view, users, cache_root(config, view))
    equip(config, recipe, model, evidence=evidence if fit or evidence is None else evidence.sizes)
    start_hash = start(config, recipe, model)
    if spreads_weights():
        shard(model.denoiser)  # before anything holds a parameter
    likelihood = likelihood_of(config, recipe, model)
    compared = reference(config, recipe, model, device)
    _count_cut_prompts(model, view)
    data: Pairs = pairs(config, view, model)
    live = isinstance(data, LivePairs)
    if config.trajectory_cache and isinstance(data, CachedPairs):
        facts = network_facts(model) | _trajectory_facts(config, recipe)
        if goes_on(config):
            facts["start"] = tensors_hash(adapters.trainable(model.denoiser))
        data = Precomputed(data, likelihood, compared, config.trajectory_cache, config.seed, facts, device)
    index, penalty, scored = order(config, view), None, with_neighbours(recipe, likelihood)
    if evidence is not None:
        data, index = UserPairs(data, users, evidence, config.user_dropout, config.seed), index if users is None else users.index
        penalty = encoder_of(model.denoiser).penalty
    more: dict[str, Any] = {"facts": start_hash, "groups": parameter_groups(config, model), "live": live}
    return Parts("image", recipe, model, scored, compared, data, view.table.fingerprint, index, penalty, **more)


def parameter_groups(config: TrainConfig, model: Backbone) -> list[dict[str, Any]] | None:
    """Return what the optimiser trains where text encoders have a learning rate of their own, None where all is trained alike."""
    if config.text_encoder_lr is None:
        return None
    denoiser, *encoders = (adapters.trainable(network) for network in model.adapted.values())
    return [{"params": denoiser}, {"params": [p for own in encoders for p in own], "lr": config.text_encoder_lr}]


def _count_cut_prompts(model: Backbone, view: View) -> None:
    """Count the prompts that are longer than the text encoder reads, and log how many these are."""
    prompts = sorted(view.entries.prompts)
    view.usage.cut_prompts, limit = model.cut_prompts(prompts)
    if view.usage.cut_prompts:
        logger.warning("%s of %s prompts exceed %d tokens and are cut", f"{view.usage.cut_prompts:,}", f"{len(prompts):,}", limit)


def _trajectory_facts(config: TrainConfig, recipe: Recipe) -> dict[str, Any]:
    """Return what points of a trajectory depend on besides the network and the data."""
    constants = {**recipe.trajectory.constants, "driver": recipe.driver}
    return {"settings": asdict(settings(config)), "trajectory": constants, "precision": config.mixed_precision}
