# python -m scripts.compare_tiny_sd3 --stage prepare; for i in 0 1; do python -m scripts.compare_tiny_sd3 --part $i/2 & done; wait
"""Diffusion-DPO, SmPO and InPO on the embedded flow transformer: the pairs, grids, prompts and seeds of compare_methods.py."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import auto_cli

from scripts.arena import Arena, Run, play_all
from scripts.compare_methods import SEEDS, STEPS, best, row, tuning

LEARNERS = ("diffusion_dpo", "smpo", "inpo")
HEAD = "| method | steps | win rate (95 %) | form | adherence | held-out acc | chosen | rejected | evals | s/step |"


def main(root: str = "outputs/compare_tiny_sd3", part: str = "0/1", stage: str = "all") -> None:
    """Tune on seed 0 and prompts of their own, then train three seeds of each method and print the table of what was run.

    Args:
        root: Folder for pairs and results; results are not computed twice.
        part: "i/n": the i-th of n blocks of runs, for processes side by side.
        stage: prepare (once, before parts that run side by side), tune, or all.
    """
    arena = Arena(Path(root), "assets/tiny-sd3")
    if stage == "prepare":
        arena.prepare(("off",), SEEDS)
        return
    play_all(arena, tuning(LEARNERS), part, "tuning")
    if stage == "tune":
        return
    chosen = best(arena, LEARNERS)
    runs = [Run("off", method, chosen[method], STEPS, seed) for seed in SEEDS for method in LEARNERS]
    play_all(arena, runs, part, "off")
    print(*(f"- {method}: {chosen[method]}" for method in LEARNERS), HEAD, "| --- " * 10 + "|", sep="\n")
    for method in LEARNERS:
        if found := [arena.result(run) for run in runs if run.method == method and arena.has(run)]:
            print(row(method, found))


if __name__ == "__main__":
    auto_cli(main)
