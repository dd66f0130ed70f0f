"""What a run takes on so many GPUs: hours, disk and memory, by arithmetic on a model without numbers. `diffalign plan` prints it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.core.files import readable
from diffalign.methods.builders import dry_run
from diffalign.methods.builders.memory_by_rank import memory_by_rank
from diffalign.methods.builders.meta_model import FusedAttention, Outline, condition_of
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe
from diffalign.models import lora_layers
from diffalign.models.diffusion.path import VPPath


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its maker's data sheet: products in half precision, dense and summed in float32, and in float32, in 1e12 FLOP/s; GB."""

    half: float
    single: float
    memory: float


DEVICES = {"h100": Device(989, 67, 80), "a100": Device(312, 19.5, 80), "rtx4090": Device(165, 82.6, 24)}
NOTE = """Arithmetic, not a measurement. Time is that of the products of matrices, at the rate above on every GPU: none is counted for
communication, reading, the optimiser and validation pictures. Filling is at the same share of the peak, the VAE in its own precision;
decoding is not counted. Memory is that of `--dry_run`, with all weights on every GPU, or spread over them (FSDP2, which goes with AdamW
alone). A checkpoint has the trained weights, what the optimiser keeps, and the moving average."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward passes of one picture that training on a record takes."""

    plain: int  # without gradient: of the reference, and of the network that runs the trajectory
    trained: int  # of the policy, with gradient
    cost: int  # of one with gradient, in forward passes
    kept: int = 0  # before training, of each point of a trajectory that is kept

    @property
    def total(self) -> int:
        """Return what a record costs in a step, in forward passes of one picture."""
        return self.plain + self.trained * self.cost


def passes(config: TrainConfig, recipe: Recipe, candidates: int = 2) -> Passes:
    """Return the passes of a record of so many candidates; those of a trajectory are counted on one number.

    A backward pass is two of the forward ones where weights of all layers are trained, and one under an adapter, which needs the
    gradients of activations alone. `gradient_checkpointing` and `sequential_candidates` repeat the forward pass, each once.
    """
    seen = 0

    def answer(x: Tensor, label: Tensor, /, *, empty: bool = False) -> Tensor:  # noqa: ARG001  # the protocol's
        nonlocal seen
        seen += x.shape[0] * x.shape[1]
        return x

    start = recipe.trajectory.constants.get("start") if recipe.trajectory.name == "self_rollout" else None
    images = candidates if recipe.trajectory.name != "self_rollout" else int(start != "noise")
    noised = recipe.trajectory(torch.zeros(1, images, 1, 1, 1), answer, VPPath.from_config({}), torch.Generator())
    trained = noised.x_t.shape[1]
    again = trained * (1 + recipe.compares) if recipe.neighbours else 0  # under the prompt of another record
    anchored = int(config.anchor_dataset_name is not None)
    plain = trained * recipe.compares + again + anchored
    backward = 2 if recipe.tuning in ("full", "controlnet") else 1
    cost = 1 + backward + config.gradient_checkpointing + config.sequential_candidates
    inverted = (0, seen) if config.trajectory_cache else (seen, 0)
    return Passes(plain + inverted[0], trained + anchored, cost, inverted[1])


def counted(drawn: Outline, call: Callable[[], Any]) -> int:
    """Return the FLOPs of products of matrices in a call on tensors without numbers, a multiplication and an addition counted as two."""
    counter = lora_layers.counter()
    with drawn.mode, drawn.model.device, torch.no_grad(), FusedAttention(), counter:
        call()
    return counter.get_total_flops()


def forward_flops(config: TrainConfig, drawn: Outline) -> int:
    """Return the FLOPs of one forward pass of one picture, at the largest size that is trained at."""
    model, size = drawn.model, max(dry_run.sizes_of(config, drawn), key=math.prod)
    prompts = condition_of(drawn, 1, size, inputs=drawn.layout.picture == "needed")

    def predict() -> None:
        condition = {**prompts, "conditioning_image": torch.zeros(1, 3, *size)}
        model.predict(model.denoiser, torch.zeros(1, *model.latent_shape(*size)), torch.full((1,), 0.5), condition)

    return counted(drawn, predict)


def encoder_flops(config: TrainConfig, drawn: Outline) -> tuple[int, int]:
    """Return the FLOPs of encoding one picture, and one prompt."""
    model, size = drawn.model, max(dry_run.sizes_of(config, drawn), key=math.prod)
    picture = counted(drawn, lambda: model.encode_at_once(torch.zeros(1, 3, *size), torch.zeros(1, *model.latent_shape(*size))))
    return picture, counted(drawn, lambda: model.encode_prompt(["a prompt"]))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is assumed of data and GPUs."""

    counts: dry_run.Counts
    device: Device
    share: float  # of the device's peak that products reach
    rate: float | None = None  # records a second that one GPU was measured to train on
    batch: int | None = None  # records a step, kept by accumulation whatever the number of GPUs
    encodes: bool = True  # whether the outline has the published encoders

    def peak(self, dtype: torch.dtype) -> float:
        """Return the FLOP/s that are reached in a precision."""
        return 1e12 * self.share * (self.device.single if dtype == torch.float32 else self.device.half)


def divided(config: TrainConfig, batch: int | None, gpus: int) -> tuple[int, int]:
    """Return (accumulated passes, records a step). Raises ConfigError for a batch that so many GPUs cannot make.

    >>> divided(TrainConfig(train_batch_size=4), 2048, 64)
    (8, 2048)
    """
    once = config.train_batch_size * gpus
    if batch is None:
        return config.gradient_accumulation_steps, once * config.gradient_accumulation_steps
    if batch % once:
        raise ConfigError(f"`effective_batch` is {batch}; expected a multiple of {once} = {config.train_batch_size} records on {gpus} GPUs")
    return batch // once, batch


def columns(config: TrainConfig, recipe: Recipe, drawn: Outline, plan: Plan, gpus: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Return what is printed: (what, a value for each number of GPUs)."""
    taken, flops = passes(config, recipe), forward_flops(config, drawn)
    rate = plan.rate or plan.peak(drawn.model.precision) / (taken.total * flops)
    divisions = [divided(config, plan.batch, count) for count in gpus]
    samples = [config.max_train_steps * batch for _, batch in divisions]
    hours = [number / rate / count / 3600 for number, count in zip(samples, gpus, strict=True)]
    cached = config.cache != "off" and plan.encodes
    filling = [_filling(config, drawn, plan, taken, flops) / count / 3600 if cached else None for count in gpus]
    checkpoint = sum(size for what, size in dry_run.held(config, recipe, drawn) if what.startswith(("trained", "optimiser", "moving")))
    whole = sum(size for _, size in dry_run.memory(config, recipe, drawn))
    adamw = replace(config, optimizer="adamw")  # the one that goes with weights that are spread
    spread = [sum(size for _, size in memory_by_rank(adamw, recipe, drawn, n)) if n > 1 else None for n in gpus]
    kept = dry_run.kept_bytes(config, drawn, plan.counts) if config.cache != "off" else None
    epochs = [number / plan.counts.rows for number in samples]
    return [
        ("GPUs", [f"{count}" for count in gpus]),
        (
            "records a step",
            [f"{batch:,}: {config.train_batch_size} x {times} x {n}" for (times, batch), n in zip(divisions, gpus, strict=True)],
        ),
        ("steps an epoch", [f"{math.ceil(plan.counts.rows / batch):,}" for _, batch in divisions]),
        ("epochs", [f"{number:.3g}" for number in epochs]),
        ("forward passes of a picture", [f"{number * taken.total:.3g}" for number in samples]),
        ("seconds a step", [f"{batch / rate / count:.3g}" for (_, batch), count in zip(divisions, gpus, strict=True)]),
        ("hours of training", [f"{value:.3g}" for value in hours]),
        ("GPU-hours of training", [f"{value * count:.3g}" for value, count in zip(hours, gpus, strict=True)]),
        ("hours of filling the cache", [_or_none(value, lambda hour: f"{hour:.3g}") for value in filling]),
        ("cache on disk", [_or_none(kept, readable)] * len(gpus)),
        ("a checkpoint", [readable(checkpoint)] * len(gpus)),
        ("memory of a GPU", [_room(whole, plan.device)] * len(gpus)),
        ("weights spread, AdamW", [_or_none(size, lambda size: _room(size, plan.device)) for size in spread]),
    ]


def _filling(config: TrainConfig, drawn: Outline, plan: Plan, taken: Passes, flops: int) -> float:
    """Return the seconds that one GPU takes to fill the cache, points of a trajectory included."""
    picture, prompt = encoder_flops(config, drawn)
    pictures = plan.counts.images * config.cache_variants * picture / plan.peak(next(drawn.parts["vae"].parameters()).dtype)
    prompts = plan.counts.prompts * prompt / plan.peak(drawn.model.precision)
    points = plan.counts.rows * config.trajectory_cache * taken.kept * flops / plan.peak(drawn.model.precision)
    return pictures + prompts + points


def _or_none(value: float | None, shown: Callable[[float], str]) -> str:
    return "-" if value is None else shown(value)


def _room(size: float, device: Device) -> str:
    """Return bytes, and whether a device of so many GB has room for them."""
    return f"{readable(size)}{'' if size <= 1e9 * device.memory else ': too large'}"


def report(config: TrainConfig, recipe: Recipe, drawn: Outline, plan: Plan, gpus: Sequence[int]) -> str:
    """Return the page that `diffalign plan` prints."""
    taken, flops = passes(config, recipe), forward_flops(config, drawn)
    peak = plan.peak(drawn.model.precision) / 1e12
    rate = plan.rate or 1e12 * peak / (taken.total * flops)
    source = "as measured" if plan.rate else f"{100 * plan.share:g} % of the device's peak, {peak:.3g}e12 FLOP/s, assumed"
    passed = f"{taken.plain} forward passes of one picture without gradient, {taken.trained} with, each of which costs {taken.cost}"
    rows = [
        *dry_run.model_rows(config, recipe, drawn)[:-1],
        ("data", f"{plan.counts.rows:,} records of {plan.counts.images:,} pictures, {plan.counts.prompts:,} prompts"),
        ("a forward pass", f"{flops:.3g} FLOP a picture"),
        ("a record", f"{passed}: {taken.total} in all"),
        ("rate", f"{rate:.3g} records a second on one GPU: {source}"),
    ]
    table = columns(config, recipe, drawn, plan, gpus)
    width, wide = max(len(name) for name, _ in table), max(len(value) for _, values in table for value in values)
    lines = [f"{name:{width}}  " + "  ".join(f"{value:>{wide}}" for value in values) for name, values in table]
    return "\n".join([*dry_run.aligned(rows), "", *lines, "", NOTE])
