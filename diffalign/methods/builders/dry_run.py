"""Rows of `diffalign train --dry_run`: what a run would train and about how much memory it takes, before anything is loaded or written."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from diffalign.core.files import readable
from diffalign.core.parts import Trained
from diffalign.data.cache import SIZES
from diffalign.data.inputs import REFERENCE
from diffalign.data.table import is_table
from diffalign.data.view import View
from diffalign.methods.builders.common import DTYPES, cache_precision
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.image import goes_on
from diffalign.methods.builders.lora import base_loras
from diffalign.methods.builders.meta_model import Outline, activations, condition_of, encoding
from diffalign.methods.checks import parse_buckets
from diffalign.methods.config import TrainConfig
from diffalign.methods.edits import inputs_of
from diffalign.methods.recipe import Recipe
from diffalign.models.adapters import trainable
from diffalign.models.backbones.distilled import warning
from diffalign.models.controlled import Controlled
from diffalign.models.prompted import networks, text_encoders
from diffalign.models.quantised import QuantisedLinear, numbers_of

# Bytes of a weight with its scales: nf4 has one of 8 bits for 64 weights, and one of 32 for 256 of those.
QUANTISED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "fp8": 1.0}
BLOCK, SMALL = 256, 4096  # 8-bit states have a scale of 32 bits a block, and smaller tensors keep 32-bit states
NOTE = """An estimate of a training step: everything is added, though gradients come as activations go. Left out: working memory of kernels,
what the allocator holds in reserve, and the device's own context (about 0.5 GiB with CUDA)."""


def opened(config: TrainConfig, recipe: Recipe) -> View | None:
    """Return the training records, where they are a table."""
    return open_dataset(config, recipe) if is_table(config.dataset_name) else None


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]


def model_rows(config: TrainConfig, recipe: Recipe, outline: Outline) -> list[tuple[str, str]]:
    """Return what is trained."""
    denoiser = outline.model.denoiser
    trained, total = sum(p.numel() for p in trainable(denoiser)), numbers_of(denoiser)
    if recipe.tuning == "full":
        base, how = total, "all weights"
    elif recipe.tuning == "controlnet":
        base, how = total - trained, "all weights of a ControlNet beside it"
    elif recipe.users is not None:
        base, how = total - trained, f"user branch with the encoder {recipe.users.name}"
    else:
        base, how = total - trained, f"{recipe.tuning} {_ranks(networks(denoiser)[0])}"
    sizes = sizes_of(config, outline)
    shapes = [f"{'x'.join(map(str, outline.model.latent_shape(h, w)))} for {h}x{w} pixels" for h, w in sizes]
    name, layout = config.pretrained_model_name_or_path, outline.layout
    distilled = warning(name, outline.model.pipeline(whole=False), layout.family, layout.component)
    return [
        ("model", f"{config.pretrained_model_name_or_path} ({outline.kind}, family {outline.layout.family})"),
        *(("with", f"{lora.file} at strength {lora.strength:g}, fused into the base") for lora in base_loras(config)),
        *([("distilled", distilled)] if distilled is not None else []),
        ("parameters", f"{base:,} in the {' and '.join([outline.layout.component, *text_encoders(denoiser)])}"),
        ("trained", f"{trained:,} ({100 * trained / base:.3g} %): {how}"),
        ("latents", ", ".join(shapes)),
    ]


def sizes_of(config: TrainConfig, outline: Outline) -> Sequence[tuple[int, int]]:
    """Return the sizes (height, width) in pixels that images are trained at."""
    side = config.resolution or outline.model.resolution
    return parse_buckets(config.aspect_ratio_buckets) or ((side, side),)


def _ranks(denoiser: Any) -> str:
    """Return the rank of an adapter in words, or the ranks of its layers."""
    config = denoiser.peft_config["default"]
    ranks = {config.r, *(config.rank_pattern or {}).values()}
    return f"of rank {min(ranks)}" if len(ranks) == 1 else f"of ranks {min(ranks)} to {max(ranks)}"


def step_rows(config: TrainConfig, recipe: Recipe, model: Trained | None, view: View | None) -> list[tuple[str, str]]:
    """Return how much a step sees, and what beta means."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = config.train_batch_size * config.gradient_accumulation_steps * processes
    paper = recipe.method.paper_batch
    counts = f"{config.train_batch_size} at once x {config.gradient_accumulation_steps} accumulated x {processes} processes"
    rows = [("method", config.method), ("records a step", f"{batch}: {counts}" + (f"; the paper's: {paper}" if paper else ""))]
    if view is not None:
        rows.append(("records", f"{len(view)}: {config.max_train_steps * batch / len(view):.3g} passes in {config.max_train_steps} steps"))
    elif config.prompts:
        rows.append(("records", f"{config.prompts_per_turn} prompts a turn, drawn as it trains"))
    else:
        rows.append(("records", f"{config.dataset_name} is not opened: it is no table yet"))
    if recipe.beta is not None and recipe.compares and model is not None:
        rows.append(("beta", model.beta_in_words(recipe.beta).removeprefix("beta ")))
    return rows


def memory(config: TrainConfig, recipe: Recipe, outline: Outline, candidates: int = 2, *, inputs: bool = False) -> list[tuple[str, float]]:
    """Return (what, bytes) of everything that lies on the device in a training step on records of so many candidates.

    With `inputs` the tokens of input pictures are among those of the pictures.
    """
    return [*held(config, recipe, outline), *worked_in(config, recipe, outline, candidates, inputs=inputs)]


def held(config: TrainConfig, recipe: Recipe, outline: Outline) -> list[tuple[str, float]]:
    """Return (what, bytes) of the networks that are trained and compared with, and what the optimiser keeps."""
    denoiser = outline.model.denoiser
    rows = weights(config, recipe, denoiser)
    if recipe.tuning == "full" and recipe.compares:
        rows.insert(2, ("the reference, a second network", _second(config, denoiser)))
    return rows


def worked_in(
    config: TrainConfig, recipe: Recipe, outline: Outline, candidates: int, *, inputs: bool = False, spread: bool = False
) -> list[tuple[str, float]]:
    """Return (what, bytes) of encoders that stay, and of activations, of a network that is `spread` over processes or is not."""
    alone = config.sequential_candidates or recipe.trajectory.name == "self_rollout"
    images, rows = config.train_batch_size * (1 if alone else candidates), list[tuple[str, float]]()
    if config.cache != "disk":
        rows.append((encoder_names(outline), encoder_bytes(outline)))
    elif outline.model.encodes_conditioning:
        rows.append(("VAE, for conditioning images", _bytes(outline.parts["vae"].parameters())))
    what = f"activations of {images} images{' with their input pictures' if inputs else ''}"
    return [*rows, (what, activations(config, outline, images, inputs=inputs, spread=spread))]


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is to keep of a dataset."""

    rows: int
    images: int
    prompts: int  # different ones

    @classmethod
    def of(cls, view: View) -> Counts:
        """Return the counts of the records that are trained on."""
        candidates = np.concatenate([batch.column("candidates").value_lengths().to_numpy() for batch in view.table.batches()])
        images = int(candidates[view.entries.rows_with_images].sum())
        return cls(len(np.unique(view.entries.rows)), images, len(view.entries.prompts))


def cache_bytes(config: TrainConfig, outline: Outline, view: View) -> int:
    """Return the bytes of latents, prompt embeddings, conditioning images and input pictures that a run keeps on disk."""
    return kept_bytes(config, outline, Counts.of(view), inputs=has_inputs(outline, view))


def kept_bytes(config: TrainConfig, outline: Outline, counts: Counts, *, inputs: bool = False) -> int:
    """Return what `cache_bytes` does, by counts; with `inputs` every row has an input picture."""
    latents = [math.prod(outline.model.latent_shape(*size)) for size in sizes_of(config, outline)]
    numbers = counts.images * config.cache_variants * max(latents)
    numbers += _condition_numbers(config, outline, counts, inputs=inputs)
    pixels = max(3 * height * width for height, width in sizes_of(config, outline))
    conditioning = counts.images * config.cache_variants * pixels if isinstance(outline.model.denoiser, Controlled) else 0
    return numbers * SIZES[cache_precision(config)] + conditioning


def _condition_numbers(config: TrainConfig, outline: Outline, counts: Counts, *, inputs: bool) -> int:
    """Return how many numbers are kept of prompts, of the empty one, and of input pictures: these by record, and what sees them as well."""
    prompts, model = counts.prompts + 1, outline.model
    if not inputs:
        return prompts * max(_numbers(condition_of(outline, 1, size, inputs=False)) for size in sizes_of(config, outline))
    rows, most = counts.rows * config.cache_variants, dict[str, int]()
    for size in sizes_of(config, outline):
        for name, value in condition_of(outline, 1, size, inputs=True).items():
            most[name] = max(most.get(name, 0), value.numel())
    reference, words = most.pop(REFERENCE), sum(most.values())
    return rows * reference + words * (prompts if model.seen_size(64, 64) is None else 2 * rows)


def has_inputs(outline: Outline, view: View | None) -> bool:
    """Return whether a run trains on input pictures; where the data are no table yet, whether its model needs them."""
    picture = outline.layout.picture
    return picture == "needed" or (picture == "optional" and view is not None and inputs_of(view))


def _numbers(condition: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in condition.values())


def weights(config: TrainConfig, recipe: Recipe, network: nn.Module) -> list[tuple[str, float]]:
    """Return (what, bytes) of weights and what the optimiser keeps of them."""
    trained = trainable(network)
    rows: list[tuple[str, float]] = [
        (f"base weights ({_dtypes(config, network)})", _frozen(config, network)),
        (f"trained weights ({'bfloat16' if config.full_bf16 else 'float32'})", _bytes(trained)),
        ("gradients", _bytes(trained)),
        (f"optimiser {config.optimizer_name}", state_bytes(config.optimizer_name, trained)),
    ]
    if recipe.compares and (recipe.tuning == "controlnet" or (goes_on(config) and recipe.tuning != "full")):
        rows.append(("the reference's trained weights (float32)", _bytes(trained)))
    if config.use_ema or recipe.driver == "ema":
        rows.append(("moving average", _bytes(trained)))
    return rows


def filling(config: TrainConfig, recipe: Recipe, outline: Outline) -> tuple[float, float]:
    """Return the bytes that lie beside the weights while the cache is filled: of the encoders, and what the VAE works in."""
    pictures = recipe.trajectory.name != "self_rollout"  # which is of prompts alone
    return encoder_bytes(outline), float(encoding(outline, max(sizes_of(config, outline), key=math.prod))) if pictures else 0.0


def room(config: TrainConfig, recipe: Recipe, outline: Outline, step: float) -> list[str]:
    """Return sentences on whether this machine has room for the `step` bytes of the table, and for what lies beside them without a GPU.

    Where filling the cache takes more than a step, that is what must fit.
    """
    encoders, filled = 0.0 if config.cache != "disk" else encoder_bytes(outline), 0.0  # which the table has already
    if config.cache == "disk" and not config.prompts:
        base, trained = (size for _, size in weights(config, recipe, outline.model.denoiser)[:2])
        filled = base + trained + sum(filling(config, recipe, outline))
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return [_fits(max(step, filled), free, f"the GPU's {readable(total)}")]
    libraries = float(psutil.Process().memory_info().rss)
    memory, needed = psutil.virtual_memory(), max(step + encoders, filled) + libraries
    return [
        f"There is no GPU here. In main memory there is beside that the {encoder_names(outline)} ({readable(encoders)}), and the process "
        f"with its libraries ({readable(libraries)} now): about {readable(needed)} in all.",
        _fits(needed, memory.available, f"this machine's {readable(memory.total)}"),
    ]


def _fits(needed: float, free: float, whole: str) -> str:
    if needed <= free:
        return f"It fits: of {whole}, {readable(free)} are free."
    return (
        f"It does not fit by this estimate: {readable(needed)} are needed, and of {whole} only {readable(free)} are free. Less is taken by "
        "a smaller train_batch_size (with gradient_accumulation_steps instead), gradient_checkpointing, or quantization nf4."
    )


def table(rows: Sequence[tuple[str, float]]) -> list[str]:
    total = ("together", sum(size for _, size in rows))
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {readable(size):>11}" for name, size in (*rows, total)]


def encoder_names(outline: Outline) -> str:
    """Return the parts that `encoder_bytes` counts, in words."""
    return "VAE" if text_encoders(outline.model.denoiser) else "VAE and text encoders"


def encoder_bytes(outline: Outline) -> float:
    """Return the bytes of VAE and text encoders, without those that are trained beside the denoiser."""
    trained = outline.model.adapted
    encoders = [part for name, part in outline.parts.items() if isinstance(part, nn.Module) and name not in trained]
    return sum(_bytes(part.parameters()) for part in encoders)


def _bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _frozen(config: TrainConfig, denoiser: nn.Module) -> float:
    """Return the bytes of what is not trained; quantised, the denoiser's weights of linear layers are as small as their kind."""
    total, quantised = _bytes(denoiser.buffers()), networks(denoiser)[0]
    small = set() if config.quantization is None else {id(m.weight) for m in quantised.modules() if isinstance(m, nn.Linear)}
    for parameter in denoiser.parameters():
        if not parameter.requires_grad:
            total += parameter.numel() * (QUANTISED[str(config.quantization)] if id(parameter) in small else parameter.element_size())
    return total


def _dtypes(config: TrainConfig, denoiser: nn.Module) -> str:
    """Return the dtypes that frozen weights lie in."""
    counts = Counter[str]()
    kinds = {id(layer.weight): layer.kind for layer in denoiser.modules() if isinstance(layer, QuantisedLinear)}
    for parameter in denoiser.parameters():
        if not parameter.requires_grad:
            counts[kinds.get(id(parameter), str(parameter.dtype).removeprefix("torch."))] += parameter.numel()
    names = [name for name, _ in counts.most_common()]
    return ", ".join([config.quantization, *names] if config.quantization else names) or "none"


def _second(config: TrainConfig, denoiser: nn.Module) -> float:
    """Return the bytes of a frozen copy, whose layers with large weights lie in the precision of the run."""
    size = DTYPES[config.mixed_precision].itemsize
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
