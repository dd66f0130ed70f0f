"""What helps against wrong votes, on the embedded world: python -m scripts.prove_repair --seeds 0 1 2

A fifth of the votes by one taste is turned around. `data explain` gives every vote a chance, by weights of looks and tastes that were
fitted on the wrong votes of other prompts. The least likely fifth is turned back or dropped, or every label becomes the chance that it is
right; or the loss itself counts on wrong labels. All trainings are Diffusion-DPO, as in compare_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from scipy.stats import mannwhitneyu

from diffalign.data.pictures import decode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table, write_table
from diffalign.data.transforms.labels import flip_labels
from diffalign.data.world.judge import read
from diffalign.data.world.tastes import TASTES, taste_score
from diffalign.evaluate.explain.attributes import attributes
from diffalign.evaluate.explain.regression import chances, design, likelihood
from diffalign.evaluate.explain.votes import votes_of_table
from scripts.arena import Arena, Run
from scripts.compare_rank import pooled

STEPS, PROMPTS, SHARE = 120, 100, 0.2
OPTIONS: dict[str, Any] = {"learning_rate": 3e-3, "beta": 500.0}
# Whose labels, and what the training changes.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "right labels": ("right", {}),
    "a fifth wrong": ("wrong", {}),
    "turned back": ("turned", {}),
    "dropped": ("dropped", {}),
    "softened": ("softened", {}),
    "dpo, label_smoothing": ("wrong", {"label_smoothing": SHARE}),
    "robust": ("wrong", {"objective": {"robust": {"beta": 500.0, "label_smoothing": SHARE}}, "beta": None}),
}


def softened(chance: np.ndarray, share: float = SHARE) -> np.ndarray:
    """Return the chance (P,) that each vote is right, of the chance (P,) that its preferred thing is better, if a `share` is wrong.

    Bayes' rule: p (1 - e) / (p (1 - e) + (1 - p) e).
    """
    return chance * (1.0 - share) / (chance * (1.0 - share) + (1.0 - chance) * share)


class Repairs(Arena):
    """An arena whose tables, named KIND-SEED, have the labels of `WAYS`."""

    def table(self, kind: str) -> Path:
        """Return the table of a kind, made if it is not there yet."""
        if kind.startswith(("off", "heldout")):
            return super().table(kind)
        path = self.root / "tables" / kind
        if not path.exists():
            name, seed = kind.split("-")
            write_table(path, self._labelled(name, int(seed)))
        return path

    def _classify(self, trainer: Any, run: Run) -> dict[str, float]:  # noqa: ARG002  # nothing is read from it here
        return {}

    def _labelled(self, name: str, seed: int) -> Iterator[Record]:
        right = [record for record in read_table(super().table("off")) if record.prob != 0.5]
        wrong = [flip_labels(record, share=SHARE, seed=seed)[0] for record in right]
        if name in ("right", "wrong"):
            return iter({"right": right, "wrong": wrong}[name])
        chance = self._chance(wrong, seed)
        unlikely = set(np.argsort(chance)[: round(SHARE * len(wrong))].tolist())
        turned = np.array([new.prob != old.prob for new, old in zip(wrong, right, strict=True)])
        area = mannwhitneyu(-chance[turned], -chance[~turned]).statistic / (turned.sum() * (~turned).sum())
        print(f"{name}, seed {seed}: {turned.sum()} of {len(wrong)} labels wrong, AUROC {area:.3f}, of the {len(unlikely)} least "
              f"likely {sum(turned[list(unlikely)])} are wrong", flush=True)  # fmt: skip
        belief = softened(chance)
        ways: dict[str, Callable[[int, Record], float | None]] = {
            "turned": lambda place, record: 1.0 - record.prob if place in unlikely and record.prob is not None else record.prob,
            "dropped": lambda place, record: None if place in unlikely else record.prob,
            "softened": lambda place, record: float(belief[place] if record.prob == 1.0 else 1.0 - belief[place]),
        }
        labels = [ways[name](place, record) for place, record in enumerate(wrong)]
        return (replace(record, prob=label) for record, label in zip(wrong, labels, strict=True) if label is not None)

    def _chance(self, records: Sequence[Record], seed: int) -> np.ndarray:
        """Return how likely each label (P,) is by weights fitted on the other prompts' labels."""
        path = self.root / "tables" / f"scored-{seed}"
        if not path.exists():
            write_table(path, (replace(r, candidates=tuple(_scored(c, r.source) for c in r.candidates)) for r in records))
        votes = votes_of_table(read_table(path))
        chance = chances(design(votes, attributes(votes), position=True), votes, seed=seed)
        if chance is None or len(votes) != len(records):
            raise ValueError(f"{len(votes)} votes of {len(records)} records, or too few prompts")
        return likelihood(chance, votes.prob)


def _scored(candidate: Candidate, source: str) -> Candidate:
    reading = read(decode_image(candidate.image or b"", source))
    return replace(candidate, scores={taste: taste_score(taste, reading) for taste in TASTES})


def main(ways: Sequence[str] = tuple(WAYS), seeds: Sequence[int] = (0, 1, 2), steps: int = STEPS, root: str = "outputs/repair") -> None:
    """Train and judge, and print a line for each run, and one for each way with its seeds pooled by prompt.

    Args:
        ways: of `WAYS`.
        seeds: of wrong labels, trainings and evaluations.
        steps: of each training.
        root: folder of tables and results.
    """
    torch.set_flush_denormal(True)
    arena = Repairs(Path(root))
    arena.eval_prompts = arena.eval_prompts[:PROMPTS]
    results = dict[str, list[dict[str, Any]]]()
    for seed in seeds:
        for way in ways:
            labels, changes = WAYS[way]
            facts = arena.result(Run(f"{labels}-{seed}", "diffusion_dpo", OPTIONS | changes, steps, seed, PROMPTS))
            results.setdefault(way, []).append(facts)
            won = f"{facts['win_rate']:.3f} ({facts['low']:.3f} to {facts['high']:.3f})"
            print(f"{way:20} seed {seed}: win rate {won}, adherence {facts['adherence']:.3f}", flush=True)
    base = [arena.base(seed)["taste"] for seed in seeds]
    for way, own in results.items():
        won, kept = pooled(arena, own, base), np.mean([facts["adherence"] for facts in own])
        print(f"{way:20} all seeds: win rate {won.rate:.3f} ({won.low:.3f} to {won.high:.3f}), adherence {kept:.3f}", flush=True)


if __name__ == "__main__":
    auto_cli(main)
