# python -m scripts.prove_precision; python -m scripts.prove_precision --what rounding --steps 10
"""Loss curves at beta 5000 in float32, in bfloat16, and in bfloat16 with a float32 residual stream, from the same draws; and how far
bfloat16 weights follow float32 ones, with and without stochastic rounding.

Pairs are those of the arena (drawings of the embedded world). Every record of a step has the same time and noise in all runs, so curves
differ by rounding alone until it has moved the weights. One figure and one JSON file are written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from diffalign.train import rounding as rounding_of_updates
from diffalign.train.precision import NOISE
from diffalign.train.trainer import LOG, trainer_for
from scripts.arena import Arena, Run

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"mixed_precision": "bf16"},
    "bf16, residual_in_fp32": {"mixed_precision": "bf16", "residual_in_fp32": True},
}


def curve(arena: Arena, steps: int, options: dict[str, Any]) -> list[dict[str, float]]:
    """Return the log of a run at beta 5000."""
    own = {"beta": 5000.0, "learning_rate": 1e-5, "overwrite_output_dir": True, **options}
    trainer = trainer_for(arena._config(Run("off", "diffusion_dpo", own, steps)))
    trainer.fit()
    return [json.loads(line) for line in (trainer.output_dir / LOG).read_text().splitlines()]


def row(name: str, log: list[dict[str, float]], exact: list[dict[str, float]]) -> dict[str, Any]:
    """Return what is said of a run: the spread of its losses, and how far they and its margins lie from those of float32."""
    losses, margins = (np.array([[line[key] for line in run] for run in (log, exact)]) for key in ("loss", "rewards/margins"))
    return {
        "run": name,
        "noise": log[0].get(NOISE),
        "least loss": float(losses[0].min()),
        "largest loss": float(losses[0].max()),
        "loss off float32 (rms)": float(np.sqrt(np.square(losses[0] - losses[1]).mean())),
        "mean margin off float32 (rms)": float(np.sqrt(np.square(margins[0] - margins[1]).mean())),
        "implicit accuracy": float(np.mean([line["implicit_acc"] for line in log])),
    }


def draw(logs: dict[str, list[dict[str, float]]], file: Path, title: str) -> None:
    """Write the curves of the losses as a figure."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for (name, log), colour in zip(logs.items(), ("black", "tab:red", "tab:blue"), strict=True):
        axes.plot([line["step"] for line in log], [line["loss"] for line in log], label=name, color=colour, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def displacement(arena: Arena, steps: int, options: dict[str, Any], start: dict[str, Tensor]) -> Tensor:
    """Return by how much full training at a rate of 1e-6 has moved all weights (numbers,) from `start`, which is filled at first."""
    own = {"beta": 500.0, "learning_rate": 1e-6, "train_method": "full", "train_batch_size": 8, "overwrite_output_dir": True, **options}
    trainer = trainer_for(arena._config(Run("off", "diffusion_dpo", own, steps)))
    start |= {} if start else {name: value.float().clone() for name, value in trainer.network.named_parameters()}
    trainer.fit()
    return torch.cat([(value.detach().float() - start[name]).flatten() for name, value in trainer.network.named_parameters()])


def rounding(arena: Arena, steps: int) -> list[dict[str, Any]]:
    """Return how far bfloat16 weights follow float32 ones, rounded stochastically and to nearest: the share of the float32 displacement."""
    half, found = {"mixed_precision": "bf16", "full_bf16": True}, []
    exact = displacement(arena, steps, {"mixed_precision": "bf16"}, start := {})
    # Both begin at the rounded weights.
    start = {name: value.bfloat16().float() for name, value in start.items()}
    stochastically = rounding_of_updates.rounded
    for name, function in (("stochastic", stochastically), ("nearest", lambda x, _: x.to(torch.bfloat16))):
        rounding_of_updates.rounded = function
        moved = displacement(arena, steps, half, dict(start))
        along = float(moved.double() @ exact.double() / exact.double().square().sum())
        found.append({"rounding": name, "along float32's way": along, "weights that moved": float((moved != 0).double().mean())})
    rounding_of_updates.rounded = stochastically
    return found


def main(root: str = "outputs/prove_precision", model: str = "assets/tiny-sd", steps: int = 60, what: str = "curves") -> None:
    """Train the runs, and write curves.png and curves.json, or rounding.json, of them.

    Args:
        root: Folder for pairs, runs and results.
        model: The embedded model, or tiny-sd3.
        steps: Optimiser steps of a run.
        what: curves of losses at beta 5000, or rounding of bfloat16 weights.
    """
    arena = Arena(Path(root) / Path(model).name, model)
    if what == "rounding":
        rows = rounding(arena, steps)
        (arena.root / "rounding.json").write_text(json.dumps({"steps": steps, "rows": rows}, indent=1) + "\n")
    else:
        logs = {name: curve(arena, steps, options) for name, options in VARIANTS.items()}
        rows = [row(name, log, logs["float32"]) for name, log in logs.items()]
        draw(logs, arena.root / "curves.png", f"Diffusion-DPO on {Path(model).name}, beta 5000, the same draws")
        (arena.root / "curves.json").write_text(json.dumps({"steps": steps, "rows": rows, "logs": logs}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    auto_cli(main)
