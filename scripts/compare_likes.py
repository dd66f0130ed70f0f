"""Likes of single pictures against pairs of the same pictures, on the embedded world: python -m scripts.compare_likes --seeds 0 1

Every picture of the pairs also has a like, or not, of its own: whether it scores at least one half by the taste. `pairs` trains
Diffusion-DPO on the pairs, `likes` Diffusion-KTO on the likes alone (`singles`), `sides` Diffusion-KTO on the two sides of the pairs.
A step sees as many pictures in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from diffalign.data.pictures import decode_image
from diffalign.data.records import Record
from diffalign.data.table import read_table, write_table
from diffalign.data.world.tastes import taste_score
from scripts.arena import Arena, Run

STEPS, PROMPTS, LIKED = 60, 100, 0.5
KTO = {"objective": {"diffusion_kto": {"zero_point": "batch"}}, "train_batch_size": 32}
WAYS: dict[str, dict[str, Any]] = {
    "pairs": {},
    "likes": {**KTO, "transforms": ["singles"]},
    "sides": {**KTO, "transforms": [{"singles": {"score": "none"}}]},
}


class Likes(Arena):
    """An arena whose pictures also have a like each."""

    def table(self, kind: str) -> Path:
        """Return the table of pairs with likes, made if it is not there yet."""
        path = self.root / "tables" / f"{kind}-likes"
        if not path.exists():
            write_table(path, (self._liked(record) for record in read_table(super().table(kind))))
        return path

    def _liked(self, record: Record) -> Record:
        scores = [taste_score(self.taste, decode_image(c.image or b"", record.source)) for c in record.candidates]
        liked = (replace(c, scores={"liked": float(score >= LIKED)}) for c, score in zip(record.candidates, scores, strict=True))
        return replace(record, candidates=tuple(liked))

    def _classify(self, trainer: Any, run: Run) -> dict[str, float]:  # noqa: ARG002  # held-out pairs are none for likes
        return {}


def main(
    ways: Sequence[str] = tuple(WAYS),
    seeds: Sequence[int] = (0,),
    betas: Sequence[float] = (500.0,),
    rate: float = 3e-3,
    root: str = "outputs/likes",
) -> None:
    """Train and judge, and print a line for each run.

    Args:
        ways: of `WAYS`.
        seeds: of trainings and evaluations.
        betas: each is a run.
        rate: learning rate.
        root: folder of tables and results.
    """
    arena = Likes(Path(root))
    arena.eval_prompts = arena.eval_prompts[:PROMPTS]
    for seed in seeds:
        for beta in betas:
            for way in ways:
                options = {"learning_rate": rate, "beta": beta, **WAYS[way]}
                facts = arena.result(Run("off", "diffusion_dpo", options, STEPS, seed, PROMPTS))
                won = f"{facts['win_rate']:.3f} ({facts['low']:.3f} to {facts['high']:.3f})"
                print(f"{way:6} beta {beta:g} seed {seed}: win rate {won}, adherence {facts['adherence']:.3f}", flush=True)


if __name__ == "__main__":
    auto_cli(main)
