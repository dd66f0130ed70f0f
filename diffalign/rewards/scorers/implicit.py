"""Scorers by a finished run itself: beta times how much likelier it makes a picture, or a text, than the model that it started from.

DPO's implicit reward (2305.18290 eq. 5). Of pictures the log-ratio is half the difference of the denoising errors, as Diffusion-DPO has it
(2311.12908), averaged over draws of time and noise that are the same for every picture. As labels of what nobody voted on it is the
self-labelling of SPA (2406.04412) and OSP (2405.14103); with an aligned and a base model as strong and weak one, CDR's ratio, here carried
over to denoisers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.runs import Run
from diffalign.core.types import Batch, Likelihood, Reference, TextBatch
from diffalign.data.pixels import centred
from diffalign.data.records import Record
from diffalign.data.sampler import sample_generator
from diffalign.models import adapters
from diffalign.models.adapter_files import MODEL, encoders_in
from diffalign.models.backbones.base import Backbone, BackboneSettings
from diffalign.models.backbones.base_lora import BaseLora
from diffalign.models.backbones.table import load_backbone
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.trajectory import forward
from diffalign.models.lora_layers import Switch
from diffalign.models.reference import AdapterOff, Frozen
from diffalign.models.text.likelihood import SequenceLikelihood, Switches
from diffalign.models.text.network import LanguageModel, load_language_model
from diffalign.models.text.template import Encoded, Template
from diffalign.models.text.truncation import Limit
from diffalign.models.weights import read_network
from diffalign.objectives import OBJECTIVES, bind_objective
from diffalign.objectives.implicit_reward import times_beta
from diffalign.rewards.base import check_arguments

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALE = (
    "implicit reward, {beta:g} times the log-ratio to the base: under one prompt, the sigmoid of a difference is the chance of preference"
)


@dataclass(frozen=True, slots=True)
class Compared:
    """A run's network, and that of the model that it started from."""

    policy: Reference
    base: Reference

    def log_ratios(self, likelihood: Likelihood, query: Any, batch: Any) -> np.ndarray:
        """Return the log-ratio of the one candidate of each record (B,), float64."""
        policy, base = (network.score(likelihood, query) for network in (self.policy, self.base))
        return likelihood.scores(policy, base, batch).log_ratio[:, 0].double().cpu().numpy()


@dataclass(frozen=True, slots=True)
class ImplicitScorer:
    """A scorer of pictures by a run of an image generator."""

    name: str
    model: Backbone
    networks: Compared
    beta: float
    draws: int
    seed: int
    noisiest: float
    scale: str
    revision: str | None
    unit: str = "logit"
    licence: str = "that of the model"

    @property
    def max_tokens(self) -> int | None:
        """Return how much of a prompt is read."""
        return self.model.cut_prompts([""])[1]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,)."""
        check_arguments(images, prompts)
        if not images:
            return np.empty(0)
        batch, trajectory = self._batch(images, prompts), functools.partial(forward, noisiest=self.noisiest)
        likelihood = DiffusionLikelihood(self.model.path, self.model.predict, trajectory)
        total = np.zeros(len(images))
        for draw in range(self.draws):
            query = likelihood.prepare(None, batch, [sample_generator(self.seed, draw) for _ in images])
            total += self.networks.log_ratios(likelihood, query, batch)
        return self.beta * total / self.draws

    def _batch(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Batch:
        """Return pictures as records of one candidate, cropped to the middle, each latent the mean of the VAE's posterior."""
        model, device = self.model, next(self.model.denoiser.parameters()).device
        pixels, frames = zip(*(centred(image, model.resolution) for image in images), strict=True)
        mean = torch.zeros(len(images), *model.latent_shape(model.resolution, model.resolution), device=device)
        latents = model.encode_image(torch.stack(pixels).to(device), mean)[:, None]
        placed = torch.tensor(frames, dtype=torch.float32, device=device)[:, None]
        return Batch(latents, model.encode_prompt(prompts), {}, torch.ones(len(images), device=device), frames=placed)


@dataclass(frozen=True, slots=True)
class ImplicitTextScorer:
    """A scorer of texts by a run of a language model: nothing is drawn."""

    name: str
    model: LanguageModel
    networks: Compared
    beta: float
    limit: Limit
    scale: str
    revision: str | None
    unit: str = "logit"
    licence: str = "that of the model"
    max_tokens: int | None = None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:  # noqa: ARG002  # as scorers are called
        """Raise ConfigError: there are no pictures to judge."""
        raise ConfigError(f"scorer `{self.name}` is a run of a language model, which judges texts; found {len(images)} images")

    def of_records(self, records: Sequence[Record]) -> np.ndarray:
        """Return the score of each record's one text (N,); NaN where the prompt alone fills the run's `max_length`."""
        scores = np.full(len(records), np.nan)
        encoded = Template(self.model.tokenizer).encode(records)
        kept = [place for place, record in enumerate(encoded) if self.limit.admits(record)]
        cut = [self.limit.cut(encoded[place], self.model.tokenizer.bos_token_id) for place in kept]
        if not cut:
            return scores
        prompts, completions = (tuple((torch.from_numpy(own[0]).long(),) for own in ids) for ids in zip(*map(_ids, cut), strict=True))
        batch = TextBatch(prompts, completions, torch.ones(len(cut))).to(self.model.device)
        likelihood = SequenceLikelihood(self.model.read, switches=Switches(share_prompt=False, padding_free=False))
        scores[kept] = self.beta * self.networks.log_ratios(likelihood, batch, batch)
        return scores


def _ids(record: Encoded) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    return record.prompts, record.completions


def implicit(
    *,
    path: str,
    draws: int = 10,
    seed: int = 0,
    noisiest: float = 1.0,
    beta: float | None = None,
    name: str = "implicit",
    device: str = "cpu",
) -> ImplicitScorer | ImplicitTextScorer:
    """Return the scorer by the run in the folder `path`, of pictures or of texts.

    Of pictures the log-ratio is the mean over `draws` of time and noise by the `seed`, times of the `noisiest` share (0, 1] of all, where
    it is decided what is in a picture. `beta` is that of the run's objective if it has DPO's, else 1. Raises CheckpointError for a folder
    without such a run, ConfigError for one that judges neither (see `check_implicit`), or a share that is none.
    """
    if not 0.0 < noisiest <= 1.0:
        raise ConfigError(f"scorer `implicit`: `noisiest` is {noisiest}; expected a share above 0, at most 1")
    run = check_implicit(path, draws)
    beta = _beta(run) if beta is None else beta
    scale = SCALE.format(beta=beta)
    precision, place = PRECISIONS[run.precision], torch.device(device)
    if run.kind == "text":
        model, networks = _language_model(run, precision, place)
        limit = Limit(run.facts.get("max_length", 1024), run.facts.get("truncation_mode", "keep_start"))
        return ImplicitTextScorer(name, model, networks, beta, limit, scale, run.facts.get("revision"))
    image, networks = _image_model(run, precision, place)
    return ImplicitScorer(name, image, networks, beta, draws, seed, noisiest, scale, run.facts.get("revision"))


def check_implicit(path: str, draws: int = 1) -> Run:
    """Return the run in a folder. Raises CheckpointError where there is none, ConfigError for one with no such log-ratio."""
    run = Run.open(path, expects=("image", "text"))
    if draws < 1:
        raise ConfigError(f"scorer `implicit`: `draws` is {draws}; expected at least 1")
    if run.personal or run.conditioned or run.steers:
        raise ConfigError(f"scorer `implicit`: {path} is a run of {run.method}, whose pictures are for users, conditions or guidance")
    if run.kind == "image" and (encoders := encoders_in(run.folder)):
        raise ConfigError(
            f"scorer `implicit`: {path} has also trained {' and '.join(encoders)}, so that both models read prompts otherwise"
        )
    return run


def _beta(run: Run) -> float:
    """Return the beta of a run's objective where its implicit reward is beta times the log-ratio, else 1."""
    bound = bind_objective(run.facts["objective"]) if run.facts.get("objective") else None
    return float(bound.constants["beta"]) if bound and OBJECTIVES[bound.name].reward is times_beta else 1.0


def _image_model(run: Run, precision: torch.dtype, device: torch.device) -> tuple[Backbone, Compared]:
    settings = BackboneSettings(run.facts.get("resolution"), run.facts.get("max_sequence_length"), run.facts.get("guidance_scale", 1.0))
    options: dict[str, Any] = {option: run.facts.get(option) for option in ("revision", "variant", "vae")}
    options["denoiser"] = None if run.facts.get("denoiser") is None else Path(run.facts["denoiser"])
    options["base_loras"] = [BaseLora.of_facts(facts) for facts in run.facts.get("base_lora") or ()]
    model: Backbone = load_backbone(run.base, device, precision=precision, settings=settings, **options)
    if model.picture == "needed":
        raise ConfigError(f"scorer `implicit`: {run.base} edits an input picture, which a scorer is not given")
    network: Any = model.denoiser
    if not run.full:
        adapters.load_lora(model.pipeline(whole=False), run.folder, model.component)
        return model, _with_and_without(network)
    tuned = read_network(type(network), run.folder / run.component, network.config).to(device, precision)
    return model, Compared(Frozen(tuned), Frozen(network))


def _language_model(run: Run, precision: torch.dtype, device: torch.device) -> tuple[LanguageModel, Compared]:
    how: dict[str, Any] = {"precision": precision, "variant": run.facts.get("variant"), "chat_template": run.facts.get("chat_template")}
    model = load_language_model(run.base, device, revision=run.facts.get("revision"), **how)
    if not run.full:
        adapters.load_peft(model.network, run.folder)
        return model, _with_and_without(model.network)
    if not (run.folder / MODEL).is_dir():
        raise CheckpointError(f"{run.folder}: the run's weights are missing; expected {MODEL}")
    tuned = load_language_model(str(run.folder / MODEL), device, precision=precision)
    return model, Compared(Frozen(tuned.network), Frozen(model.network))


def _with_and_without(network: torch.nn.Module) -> Compared:
    return Compared(Frozen(network), AdapterOff(network, Switch(network)))
