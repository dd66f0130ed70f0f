# python -m scripts.prove_precision
"""Loss curves at beta 5000 in float32, in bfloat16, and in bfloat16 with a float32 residual stream, from the same draws.

Pairs are those of the arena (drawings of the embedded world). Every record of a step has the same time and noise in all runs, so curves
differ by rounding alone until it has moved the weights. One figure and one JSON file are written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jsonargparse import auto_cli

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


def main(root: str = "outputs/prove_precision", model: str = "assets/tiny-sd", steps: int = 60) -> None:
    """Train the three runs, and write curves.png and curves.json of them.

    Args:
        root: Folder for pairs, runs and results.
        model: The embedded model, or tiny-sd3.
        steps: Optimiser steps of a run.
    """
    arena = Arena(Path(root) / Path(model).name, model)
    logs = {name: curve(arena, steps, options) for name, options in VARIANTS.items()}
    rows = [row(name, log, logs["float32"]) for name, log in logs.items()]
    draw(logs, arena.root / "curves.png", f"Diffusion-DPO on {Path(model).name}, beta 5000, the same draws")
    (arena.root / "curves.json").write_text(json.dumps({"steps": steps, "rows": rows, "logs": logs}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    auto_cli(main)
