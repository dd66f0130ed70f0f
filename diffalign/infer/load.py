"""A trained result, ready to use: a stock diffusers pipeline, a function from prompts to texts, or a scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffalign.core.errors import ConfigError
from diffalign.core.keys import ANY
from diffalign.core.runs import Run
from diffalign.infer.kinds.image import base_of, with_result
from diffalign.infer.kinds.table import KINDS
from diffalign.infer.negative import attach
from diffalign.infer.users.personal import Personal


def load(
    output_dir: str | Path,
    *,
    positive: str | Path | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    device_map: str | None = None,
) -> Any:
    """Return what a finished run is used as: the stock pipeline of its base model with the result applied.

    Of a personalised run it is a `Personal` around the pipeline, of a language model a `Rewriter` (prompts in, texts out), of a reward
    model a scorer (pictures and prompts in, numbers out).

    Args:
        output_dir: folder of a finished run.
        positive: run that the result goes on top of; for Diffusion-NPO, Self-NPO and personalised runs.
        alpha: share of `positive` that the unconditional branch keeps; for Diffusion-NPO and Self-NPO.
        beta: weight of the result in that branch; for Diffusion-NPO and Self-NPO.
        dtype: precision of the weights.
        device: where to put them.
        device_map: diffusers' own (balanced, cuda), instead of `device`.

    Raises CheckpointError if a folder holds no finished run, ConfigError for `positive` with other methods.

    Example:
        >>> pipe = load("outputs/mine", device="cuda")  # doctest: +SKIP
        >>> pipe("a red star").images[0]  # doctest: +SKIP
    """
    run = Run.open(output_dir, expects=ANY)
    under = None if positive is None else Run.open(positive)
    check_layers(run, under, alpha, beta)
    if run.steers:
        return _placed(_steered(run, under, alpha, beta, dtype, device_map), device, device_map)
    if run.kind != "image" or (device_map is None and under is None):  # `device_map` is of pipelines
        return KINDS[run.kind].load(run, dtype=dtype, device=device)
    return _placed(with_result(run, dtype, device_map, under), device, device_map)


def check_layers(run: Run, under: Run | None, alpha: float, beta: float) -> None:
    """Raise ConfigError for a run that does not go on top of the run `under`, or weights that have nothing to weigh."""
    if not run.steers and ((alpha, beta) != (1.0, 1.0) or (under is not None and not run.personal)):
        raise ConfigError(
            f"{run.folder}: `alpha` and `beta` are for runs of diffusion_npo and self_npo, `positive` for these and personalised runs; "
            f"this is {run.method}"
        )
    if under is not None and (under.steers or under.inference == run.inference):
        raise ConfigError(f"{under.folder}: `positive` is a run of {under.method} itself; expected one that aligns")
    if under is not None and run.personal and Path(under.base).name != Path(run.base).name:
        raise ConfigError(
            f"{under.folder}: `positive` is a run on {under.base}, and {run.folder} one on {run.base}; expected the same base"
        )
    if under is not None and run.personal and under.facts.get("base_lora") != run.facts.get("base_lora"):
        raise ConfigError(
            f"{under.folder}: `positive` and {run.folder} have other LoRA files in their bases; expected the same `base_lora`"
        )
    if alpha != 1.0 and (under is None or under.tuning in ("full", "user")):
        raise ConfigError(f"`alpha` is {alpha}, and there is no positive adapter to keep a part of (`positive`: a LoRA run)")


def _steered(run: Run, under: Run | None, alpha: float, beta: float, dtype: torch.dtype, device_map: str | None) -> Any:
    """Return the base, or the run `under`, with the unconditional branch of guidance running with `run`'s result (see `attach`)."""
    if under is None or under.personal:
        pipe = base_of(under or run, dtype=dtype, device_map=device_map)
    else:
        pipe = with_result(under, dtype, device_map)
    attach(pipe, run.folder, alpha=alpha, beta=beta)
    if under is not None and under.personal:
        # The branch comes last: an adapter is injected wherever a layer has the right name, and some of SD3's projector do.
        return Personal(pipe, under, guided_by=run.folder)
    return pipe


def _placed(made: Any, device: str | torch.device, device_map: str | None) -> Any:
    if device_map is None:
        (made.pipe if isinstance(made, Personal) else made).to(device)
    return made
