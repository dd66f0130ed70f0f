# python -m scripts.compare_rank
"""RankDPO on whole rankings against Diffusion-DPO on all their pairs, at equal images: against the base, and picture by picture.

128 prompts with four images each of tiny-sd, ranked by the taste "high", drawn anew for every seed; 160 steps of 8 records against 160
steps of 16 pairs, so that both see 32 images a step. Betas are tried on seed 0 and prompts of their own; the comparison on the held-out
prompts is made at beta 500 for both, and at each method's own best one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli

from diffalign.data.table import is_table
from diffalign.evaluate import WinRate, win_rate
from diffalign.generate import generate
from diffalign.options_pairs import GenerateConfig
from scripts.arena import SCALE, TASTE, Arena, Run, play_all

PROMPTS, STEPS, SEEDS = 128, 160, (0, 1, 2)
RECORDS = {"rank_dpo": 8, "diffusion_dpo": 16}  # records of a step: of four images, and of two
HEAD = "| betas | seed | RankDPO against base | DPO against base | RankDPO against DPO | adherence | DPO's |"
BETAS, USUAL = (250.0, 500.0, 1000.0, 2000.0), 500.0


def run_of(method: str, beta: float, seed: int, tuning: bool = False) -> Run:
    """Return the run of a method on the rankings of `seed`."""
    options = {"beta": beta, "learning_rate": 1e-3, "train_batch_size": RECORDS[method]}
    return Run(f"ranked-{seed}", method, options, STEPS, seed, 100 if tuning else 200, tuning=tuning)


def draw_rankings(arena: Arena, seed: int) -> None:
    """Draw and rank the images of `seed`, if they are not there yet."""
    folder = arena.root / "tables" / f"ranked-{seed}"
    if not is_table(folder):
        drawn: dict[str, Any] = {"pretrained_model_name_or_path": arena.model, "guidance_scale": SCALE, "seed": seed}
        config = GenerateConfig(output_dir=str(folder), scorers=[{"taste": {"name": TASTE}}], **drawn)
        generate(config, arena.train_prompts[:PROMPTS])


def best_beta(found: Sequence[Mapping[str, Any]], method: str) -> float:
    """Return the beta with the highest win rate among those that keep adherence within 0.03 of the method's best."""
    own = [facts for facts in found if facts["method"] == method]
    kept = [facts for facts in own if facts["adherence"] >= max(other["adherence"] for other in own) - 0.03]
    return float(max(kept, key=lambda facts: facts["win_rate"])["options"]["beta"])


def pooled(arena: Arena, first: Sequence[Mapping[str, Any]], second: Sequence[Sequence[float]]) -> WinRate:
    """Return how often the pictures of the runs `first` beat the scores `second` of the same prompts and noises, seeds pooled by prompt."""
    prompts = [prompt for facts in first for prompt in arena.eval_prompts[: facts["prompts"]]]
    own, other = ([value for scores in side for value in scores] for side in ([facts["tastes"] for facts in first], second))
    return win_rate(other, own, prompts)


def lines(arena: Arena, title: str, ranks: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of one comparison: every seed, and all of them together."""
    groups = [([r], [p], f"seed {r['seed']}") for r, p in zip(ranks, pairs, strict=True)]
    rows = []
    for own, other, name in [*groups, (ranks, pairs, "all")]:
        against = [arena.base(facts["seed"])["taste"] for facts in own]
        found = (pooled(arena, own, against), pooled(arena, other, against), pooled(arena, own, [facts["tastes"] for facts in other]))
        cells = [title, name, *(f"{won.rate:.3f} ({won.low:.3f} to {won.high:.3f})" for won in found)]
        cells += [f"{np.mean([facts['adherence'] for facts in side]):.3f}" for side in (own, other)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main(root: str = "outputs/compare_rank") -> None:
    """Try the betas, train, and print the tables of what was found.

    Args:
        root: Folder for rankings and results; results are not computed twice.
    """
    arena = Arena(Path(root))
    for seed in SEEDS:
        draw_rankings(arena, seed)
    play_all(arena, [run_of(method, USUAL, seed) for seed in SEEDS for method in RECORDS], "0/1", "beta 500")
    tuned = play_all(arena, [run_of(method, beta, 0, tuning=True) for method in RECORDS for beta in BETAS], "0/1", "betas")
    chosen = {method: best_beta(tuned, method) for method in RECORDS}
    play_all(arena, [run_of(method, beta, seed) for seed in SEEDS for method, beta in chosen.items()], "0/1", "best betas")
    print(HEAD, "| --- " * 7 + "|", sep="\n")
    for betas in (dict.fromkeys(RECORDS, USUAL), chosen):
        ranks, pairs = ([arena.result(run_of(method, betas[method], seed)) for seed in SEEDS] for method in RECORDS)
        title = f"{betas['rank_dpo']:g} and {betas['diffusion_dpo']:g}"
        print(*lines(arena, title, ranks, pairs), sep="\n", flush=True)


if __name__ == "__main__":
    auto_cli(main)
