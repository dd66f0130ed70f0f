# python -m scripts.text_encoder
"""Diffusion-DPO on tiny-sd with and without its text encoder trained: the same pairs, steps, seeds and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli

from diffalign.evaluate.win_rate import win_rate
from scripts.arena import Arena, Run

STEPS = 120
DPO = {"beta": 500.0, "learning_rate": 1e-3}  # as compare_methods.py found it
WAYS: dict[str, dict[str, Any]] = {
    "the denoiser alone": DPO,
    "with the text encoder": {**DPO, "train_text_encoder": True},
    "with the text encoder at a tenth of the rate": {**DPO, "train_text_encoder": True, "text_encoder_lr": 1e-4},
}


def main(root: Path = Path("outputs/text_encoder"), data: str = "off", seeds: int = 3) -> None:
    """Train and judge what `root` does not have yet, seed by seed, and print the table."""
    arena = Arena(root)
    print(
        "| trained | win rate over the base (95 %) | over the denoiser alone (95 %) | adherence | seeds |\n| --- | --- | --- | --- | --- |"
    )
    runs = {way: [Run(data, "diffusion_dpo", options, STEPS, seed) for seed in range(seeds)] for way, options in WAYS.items()}
    for seed in range(seeds):
        for way in WAYS:
            arena.result(runs[way][seed])
    alone = [arena.result(run) for run in runs["the denoiser alone"]]
    for way, own in runs.items():
        results = [arena.result(run) for run in own]
        over = [win_rate(one["tastes"], two["tastes"], arena.eval_prompts) for one, two in zip(alone, results, strict=True)]
        base, direct = (
            np.mean([[r["win_rate"], r["low"], r["high"]] for r in results], axis=0),
            np.mean([[won.rate, won.low, won.high] for won in over], axis=0),
        )
        columns = [f"{rate:.3f} ({low:.3f} to {high:.3f})" for rate, low, high in (base, direct)]
        print(f"| {way} | {' | '.join(columns)} | {np.mean([r['adherence'] for r in results]):.3f} | {seeds} |")


if __name__ == "__main__":
    auto_cli(main)
