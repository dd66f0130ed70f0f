"""Three votes of a hundred, and labels by the model that learnt from them: python -m scripts.prove_self_labels --seeds "[0, 1, 2]"

On the embedded world, with the taste and the settings of prove_repair.py, and several pairs a prompt. `few` trains on the votes that are
left. Its run scores every picture by its implicit reward, under the noisier times, and labels the pairs without a vote where it is surest;
with the votes these are what `self` trains on from the start model, and `spa` from the run on few votes, its reference (2406.04412). `all`
has the true labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.data.records import Record
from diffalign.data.table import Table, read_table, write_table
from diffalign.rewards.score_table import score_table
from scripts.arena import Run
from scripts.prove_repair import OPTIONS, PROMPTS, Repairs

STEPS, SHARE, PAIRS, SURE = 120, 0.03, 9, 0.5  # of each training; of votes; of a prompt; of the labels, the surest
SCORER: dict[str, Any] = {"draws": 4, "noisiest": 0.3}


class SelfLabels(Repairs):
    """An arena with a table of few votes, and of these with the labels that the run on them gives to other pairs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.train_prompts = [prompt for prompt in self.train_prompts for _ in range(PAIRS)]

    def table(self, kind: str) -> Path:
        """Return the table of a kind, made if it is not there yet."""
        name, _, number = kind.partition("-")
        path = self.root / "tables" / kind
        if name == "few" and not path.exists():
            whole = read_table(super().table(f"right-{number}"))
            chosen = np.random.default_rng([int(number), 3]).choice(len(whole), size=round(SHARE * len(whole)), replace=False)
            write_table(path, (whole[int(place)] for place in sorted(chosen)))
        elif name == "self" and not path.exists():
            write_table(path, self._labelled_by_run(int(number)))
        return path if name in ("few", "self") else super().table(kind)

    def _labelled_by_run(self, seed: int) -> Iterator[Record]:
        """Yield the votes, and the surest labels of other pairs; print how many of them are right."""
        votes, scored = read_table(self.table(f"few-{seed}")), self._scored(seed)
        voted = set(votes.column("id"))
        others = [record for record in scored if record.id not in voted]
        lead = np.array([first - second for first, second in ([c.scores["implicit"] for c in r.candidates] for r in others)])
        right = (lead > 0) == np.array([record.prob == 1.0 for record in others])
        sure = np.abs(lead) >= np.quantile(np.abs(lead), 1.0 - SURE)
        print(f"seed {seed}: of {len(votes)} votes and {len(others)} pairs without one {right.mean():.3f} are labelled rightly, and "
              f"{right[sure].mean():.3f} of the {sure.sum()} surest", flush=True)  # fmt: skip
        yield from votes
        yield from (replace(record, prob=float(lead[i] > 0)) for i, record in enumerate(others) if sure[i])

    def _scored(self, seed: int) -> Table:
        path = self.root / "tables" / f"scored-by-run-{seed}"
        if not path.exists():
            scorer = {"implicit": {"path": str(self.root / "runs" / few(seed).key), **SCORER}}
            score_table(read_table(super().table(f"right-{seed}")), path, [scorer])
        return read_table(path)


def few(seed: int) -> Run:
    """Return the run on few votes."""
    return Run(f"few-{seed}", "diffusion_dpo", OPTIONS, STEPS, seed, PROMPTS)


def main(ways: Sequence[str] = ("few", "self", "spa", "all"), seeds: Sequence[int] = (0, 1, 2), root: str = "outputs/self_labels") -> None:
    """Train and judge, and print a line for each run.

    Args:
        ways: few, self, spa, all; in this order.
        seeds: of the votes that are left, trainings and evaluations.
        root: folder of tables and results.
    """
    torch.set_flush_denormal(True)
    arena = SelfLabels(Path(root))
    arena.eval_prompts = arena.eval_prompts[:PROMPTS]
    for seed in seeds:
        start = {"start_from": str(arena.root / "runs" / few(seed).key), "reference": "policy_start"}
        runs = {"few": few(seed), "self": replace(few(seed), data=f"self-{seed}"), "all": replace(few(seed), data=f"right-{seed}")}
        runs["spa"] = replace(runs["self"], options=OPTIONS | start)
        for way in ways:
            facts = arena.result(runs[way])
            won = f"{facts['win_rate']:.3f} ({facts['low']:.3f} to {facts['high']:.3f})"
            print(f"{way:5} seed {seed}: win rate {won}, adherence {facts['adherence']:.3f}", flush=True)


if __name__ == "__main__":
    auto_cli(main)
