"""Three votes of a hundred, and labels by the model that learnt from them: python -m scripts.prove_self_labels --seeds "[0, 1]"

On the embedded world, with the pairs, the taste and the settings of prove_repair.py. `few` trains on the votes that are left; its
run labels all pairs by its implicit reward, and `self` trains on these from the start model, `all` on the true labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.data.table import Table, read_table, write_table
from diffalign.rewards.score_table import score_table
from scripts.arena import Run
from scripts.prove_repair import OPTIONS, PROMPTS, Repairs

STEPS, SHARE, DRAWS = 60, 0.03, 4
# Every pair as the run labels it, softly; those with a vote, too.
SELF: dict[str, Any] = {"transforms": ["pairs", {"relabel": {"score": "implicit", "temperature": 1.0}}]}


class SelfLabels(Repairs):
    """An arena with a table of few votes, and of all pairs as the run on these scores them."""

    def table(self, kind: str) -> Path:
        """Return the table of a kind, made if it is not there yet."""
        name, _, number = kind.partition("-")
        path = self.root / "tables" / kind
        if name == "few" and not path.exists():
            whole = read_table(super().table(f"right-{number}"))
            chosen = np.random.default_rng([int(number), 3]).choice(len(whole), size=round(SHARE * len(whole)), replace=False)
            write_table(path, (whole[int(place)] for place in sorted(chosen)))
        elif name == "self" and not path.exists():
            scorer = {"implicit": {"path": str(self.root / "runs" / few(int(number)).key), "draws": DRAWS}}
            self._report(score_table(read_table(super().table(f"right-{number}")), path, [scorer]), int(number))
        return path if name in ("few", "self") else super().table(kind)

    def _report(self, scored: Table, seed: int) -> None:
        """Print how many of the pairs that nobody voted on have the right label."""
        voted = set(read_table(self.table(f"few-{seed}")).column("id"))
        pairs = [(record.prob, *(c.scores["implicit"] for c in record.candidates)) for record in scored if record.id not in voted]
        right = np.mean([(first > second) == (prob == 1.0) for prob, first, second in pairs])
        print(f"seed {seed}: {right:.3f} of {len(pairs)} pairs without a vote are labelled rightly", flush=True)


def few(seed: int) -> Run:
    """Return the run on few votes."""
    return Run(f"few-{seed}", "diffusion_dpo", OPTIONS, STEPS, seed, PROMPTS)


def main(ways: Sequence[str] = ("few", "self", "all"), seeds: Sequence[int] = (0, 1), root: str = "outputs/repair") -> None:
    """Train and judge, and print a line for each run.

    Args:
        ways: few, self, all; in this order.
        seeds: of the votes that are left, trainings and evaluations.
        root: folder of tables and results, which prove_repair.py also uses.
    """
    torch.set_flush_denormal(True)
    arena = SelfLabels(Path(root))
    arena.eval_prompts = arena.eval_prompts[:PROMPTS]
    for seed in seeds:
        runs = {"few": few(seed), "self": replace(few(seed), data=f"self-{seed}", options=OPTIONS | SELF)}
        runs["all"] = replace(few(seed), data=f"right-{seed}")
        for way in ways:
            facts = arena.result(runs[way])
            won = f"{facts['win_rate']:.3f} ({facts['low']:.3f} to {facts['high']:.3f})"
            print(f"{way:5} seed {seed}: win rate {won}, adherence {facts['adherence']:.3f}", flush=True)


if __name__ == "__main__":
    auto_cli(main)
