"""`diffalign train --dry_run`: what a run would train and about how much memory it takes, before anything is loaded or written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.parts import Trained
from diffalign.data.table import is_table
from diffalign.data.view import View
from diffalign.methods import METHODS
from diffalign.methods.build import image as build
from diffalign.methods.build import reward as rewardbuild
from diffalign.methods.build.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.models.adapters import trainable
from diffalign.models.backbones.folders import is_language_model
from diffalign.rewards.heads.settings import settings_of
from diffalign.train import dry_run_text as dryrun_text
from diffalign.train.meta_model import Outline, activations, outline

# Bytes of a weight with its scales: nf4 has one of 8 bits for 64 weights, and one of 32 for 256 of those.
QUANTISED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "fp8": 1.0}
BLOCK, SMALL = 256, 4096  # 8-bit states have a scale of 32 bits a block, and smaller tensors keep 32-bit states
NOTE = """An estimate of a training step: everything is added, though gradients come as activations go. Left out: working memory of kernels,
what the allocator holds in reserve, and the device's own context (about 0.5 GiB with CUDA)."""


def report(config: TrainConfig, candidates: int = 2) -> str:
    """Return a table of what training with `config` would do. Raises what `diffalign train` would raise before it loads weights.

    Records of data that is no table yet are taken to have so many candidates.
    """
    config.check()
    build.check(config)
    if METHODS[config.method].inference == "reward":
        name, head = settings_of(config.reward_head, config.method)
        found = ("model", f"reward head {name} ({head}) on embeddings of {config.pretrained_model_name_or_path}")
        if (view := _view(config, "image")) is not None:
            view.entries = rewardbuild.divided(config, view)[0]
        return "\n".join(_aligned([found, *_step(config, None, view)]))
    if is_language_model(config.pretrained_model_name_or_path):
        model, found = dryrun_text.described(config)
        lines = _aligned([*found, *_step(config, model, _view(config, "text"))])
        return "\n".join([*lines, "", *_table(_weights(config, model.network)), "", dryrun_text.NOTE])
    drawn, view = outline(config, torch.device("cuda")), _view(config, "image")
    lines = _aligned([*_model(config, drawn), *_step(config, drawn.model, view)])
    encoders = readable(sum(_bytes(part.parameters()) for part in _encoders(drawn)))
    before = [] if config.cache == "off" else [f"Before training, VAE and text encoders fill the cache: {encoders} beside the weights."]
    return "\n".join(
        [*lines, "", *_table(memory(config, drawn, candidates if view is None else len(view.entries[0].order))), "", NOTE, *before]
    )


def _view(config: TrainConfig, kind: str) -> View | None:
    """Return the training records, where they are a table."""
    return open_dataset(config, kind=kind) if is_table(config.dataset_name) else None


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]


def _model(config: TrainConfig, drawn: Outline) -> list[tuple[str, str]]:
    """Return what is trained."""
    denoiser = drawn.model.denoiser
    trained, total = (sum(p.numel() for p in found) for found in (trainable(denoiser), denoiser.parameters()))
    if config.tuning == "full":
        base, how = total, "all weights"
    elif config.users is not None:
        base, how = total - trained, f"user branch with the encoder {', '.join(config.users)}"
    else:
        base, how = total - trained, f"{config.tuning} of rank {config.rank}"
    side = config.resolution or drawn.model.resolution
    sizes = config.buckets or ((side, side),)
    shapes = [f"{'x'.join(map(str, drawn.model.latent_shape(h, w)))} for {h}x{w} pixels" for h, w in sizes]
    return [
        ("model", f"{config.pretrained_model_name_or_path} ({drawn.kind}, family {drawn.layout.family})"),
        ("parameters", f"{base:,} in the {drawn.layout.component}"),
        ("trained", f"{trained:,} ({100 * trained / base:.3g} %): {how}"),
        ("latents", ", ".join(shapes)),
    ]


def _step(config: TrainConfig, model: Trained | None, view: View | None) -> list[tuple[str, str]]:
    """Return how much a step sees, and what beta means."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = config.train_batch_size * config.gradient_accumulation_steps * processes
    paper = METHODS[config.method].paper_batch
    counts = f"{config.train_batch_size} at once x {config.gradient_accumulation_steps} accumulated x {processes} processes"
    rows = [("method", config.method), ("records a step", f"{batch}: {counts}" + (f"; the paper's: {paper}" if paper else ""))]
    if view is not None:
        rows.append(("records", f"{len(view)}: {config.max_train_steps * batch / len(view):.3g} passes in {config.max_train_steps} steps"))
    else:
        rows.append(("records", f"{config.dataset_name} is not opened: it is no table yet"))
    ((_, constants),) = config.part("objective").items()
    if "beta" in constants and config.compares and model is not None:
        rows.append(("beta", model.beta_in_words(constants["beta"]).removeprefix("beta ")))
    return rows


def memory(config: TrainConfig, drawn: Outline, candidates: int = 2) -> list[tuple[str, float]]:
    """Return (what, bytes) of everything that lies on the device in a training step on records of so many candidates."""
    denoiser, alone = drawn.model.denoiser, config.sequential_candidates or "self_rollout" in config.part("trajectory")
    images = config.train_batch_size * (1 if alone else candidates)
    rows = _weights(config, denoiser)
    if config.tuning == "full" and config.compares:
        rows.insert(2, ("the reference, a second network", _second(config, denoiser)))
    if config.cache == "off":
        rows.append(("VAE and text encoders", sum(_bytes(part.parameters()) for part in _encoders(drawn))))
    rows.append((f"activations of {images} images", activations(config, drawn, images)))
    return rows


def _weights(config: TrainConfig, network: nn.Module) -> list[tuple[str, float]]:
    """Return (what, bytes) of weights and what the optimiser keeps of them."""
    trained = trainable(network)
    rows: list[tuple[str, float]] = [
        (f"base weights ({_dtypes(config, network)})", _frozen(config, network)),
        ("trained weights (float32)", _bytes(trained)),
        ("gradients", _bytes(trained)),
        (f"optimiser {config.optimizer_name}", state_bytes(config.optimizer_name, trained)),
    ]
    if config.start_from is not None and config.compares and config.tuning != "full":
        rows.append(("the reference's trained weights (float32)", _bytes(trained)))
    if config.use_ema or build.driver(config) == "ema":
        rows.append(("moving average", _bytes(trained)))
    return rows


def _table(rows: Sequence[tuple[str, float]]) -> list[str]:
    total = ("together", sum(size for _, size in rows))
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {readable(size):>11}" for name, size in (*rows, total)]


def readable(size: float) -> str:
    """Return bytes in GiB, or MiB below one.

    >>> readable(3 * 2**29), readable(2**20)
    ('1.50 GiB', '1.00 MiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def _encoders(drawn: Outline) -> list[nn.Module]:
    return [part for name, part in drawn.parts.items() if isinstance(part, nn.Module) and name != drawn.layout.component]


def _bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _frozen(config: TrainConfig, denoiser: nn.Module) -> float:
    """Return the bytes of what is not trained; quantised, the weights of linear layers are as small as their kind."""
    total = _bytes(denoiser.buffers())
    small = set() if config.quantization is None else {id(m.weight) for m in denoiser.modules() if isinstance(m, nn.Linear)}
    for parameter in denoiser.parameters():
        if not parameter.requires_grad:
            total += parameter.numel() * (QUANTISED[str(config.quantization)] if id(parameter) in small else parameter.element_size())
    return total


def _dtypes(config: TrainConfig, denoiser: nn.Module) -> str:
    """Return the dtypes that frozen weights lie in."""
    found = Counter[str]()
    for parameter in denoiser.parameters():
        if not parameter.requires_grad:
            found[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    names = [name for name, _ in found.most_common()]
    return ", ".join([config.quantization, *names] if config.quantization else names) or "none"


def _second(config: TrainConfig, denoiser: nn.Module) -> float:
    """Return the bytes of a frozen copy, whose layers with large weights lie in the precision of the run."""
    size = build.DTYPES[config.mixed_precision].itemsize
    large = {id(p) for m in denoiser.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()}
    return float(sum(p.numel() * (size if id(p) in large else 4) for p in denoiser.parameters()))


def state_bytes(optimizer: str, parameters: Iterable[Any]) -> float:
    """Return the bytes of an optimiser's state for float32 `parameters`."""
    total = 0.0
    for parameter in parameters:
        count, shape = parameter.numel(), parameter.shape
        if optimizer == "adafactor":
            total += 4 * (count / shape[-1] + count / shape[-2] if len(shape) > 1 else count)
        elif optimizer == "adamw" or count < SMALL:
            total += 8 * count
        else:
            total += 2 * (count + 4 * count / BLOCK)
    return total
