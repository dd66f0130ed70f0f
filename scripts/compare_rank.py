# python -m scripts.compare_rank
"""RankDPO on whole rankings against Diffusion-DPO on all their pairs, at equal images: against the base, and picture by picture.

128 prompts with four images each of tiny-sd, ranked by the taste "high", drawn anew for every seed; 160 steps of 8 records against 160
steps of 16 pairs, so that both see 32 images a step. Beta 500 for both on three seeds, other betas on the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli

from diffalign.data.table import is_table
from diffalign.evaluate.win_rate import WinRate, win_rate
from diffalign.infer.generate_pairs import generate
from diffalign.infer.options import GenerateConfig
from scripts.arena import SCALE, TASTE, Arena, Run, play_all

PROMPTS, STEPS, SEEDS = 128, 160, (0, 1, 2)
RECORDS = {"rank_dpo": 8, "diffusion_dpo": 16}  # records of a step: of four images, and of two
HEAD = "| betas | seed | RankDPO against base | DPO against base | RankDPO against DPO | adherence | DPO's |"
BETA, OTHERS = 500.0, (125.0, 250.0, 1000.0)


def run_of(method: str, beta: float, seed: int) -> Run:
    """Return the run of a method on the rankings of `seed`."""
    return Run(f"ranked-{seed}", method, {"beta": beta, "learning_rate": 1e-3, "train_batch_size": RECORDS[method]}, STEPS, seed)


def draw_rankings(arena: Arena, seed: int) -> None:
    """Draw and rank the images of `seed`, if they are not there yet."""
    folder = arena.root / "tables" / f"ranked-{seed}"
    if not is_table(folder):
        drawn: dict[str, Any] = {"pretrained_model_name_or_path": arena.model, "guidance_scale": SCALE, "seed": seed}
        config = GenerateConfig(output_dir=str(folder), scorers=[{"taste": {"name": TASTE}}], **drawn)
        generate(config, arena.train_prompts[:PROMPTS])


def pooled(arena: Arena, first: Sequence[Mapping[str, Any]], second: Sequence[Sequence[float]]) -> WinRate:
    """Return how often the pictures of the runs `first` beat the scores `second` of the same prompts and noises, seeds pooled by prompt."""
    prompts = [prompt for facts in first for prompt in arena.eval_prompts[: facts["prompts"]]]
    own, other = ([value for scores in side for value in scores] for side in ([facts["tastes"] for facts in first], second))
    return win_rate(other, own, prompts)


def row(arena: Arena, betas: tuple[float, float], seeds: Sequence[int]) -> str:
    """Return the row of RankDPO and DPO at two betas, the seeds pooled."""
    own, other = ([arena.result(run_of(method, beta, seed)) for seed in seeds] for method, beta in zip(RECORDS, betas, strict=True))
    against = [arena.base(seed)["taste"] for seed in seeds]
    found = (pooled(arena, own, against), pooled(arena, other, against), pooled(arena, own, [facts["tastes"] for facts in other]))
    cells = [f"{betas[0]:g} and {betas[1]:g}", ", ".join(map(str, seeds))]
    cells += [f"{won.rate:.3f} ({won.low:.3f} to {won.high:.3f})" for won in found]
    cells += [f"{np.mean([facts['adherence'] for facts in side]):.3f}" for side in (own, other)]
    return f"| {' | '.join(cells)} |"


def main(root: str = "outputs/compare_rank", show: bool = False) -> None:
    """Train what is not trained yet, and print the table of what is.

    Args:
        root: Folder for rankings and results; results are not computed twice.
        show: Train nothing.
    """
    arena = Arena(Path(root))
    runs = [run_of(method, BETA, seed) for seed in SEEDS for method in RECORDS]
    runs += [run_of(method, beta, 0) for method in reversed(RECORDS) for beta in OTHERS]
    if not show:
        for seed in SEEDS:
            draw_rankings(arena, seed)
        play_all(arena, runs, "0/1", "RankDPO and DPO")
    print(HEAD, "| --- " * 7 + "|", sep="\n")
    rows = [((BETA, BETA), (seed,)) for seed in SEEDS] + [((BETA, BETA), SEEDS)]
    rows += [(betas, (0,)) for beta in OTHERS for betas in ((BETA, beta), (beta, beta))]
    for betas, seeds in rows:
        if all(arena.has(run_of(method, beta, seed)) for method, beta in zip(RECORDS, betas, strict=True) for seed in seeds):
            print(row(arena, betas, seeds))


if __name__ == "__main__":
    auto_cli(main)
