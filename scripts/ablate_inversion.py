# python scripts/ablate_inversion.py --part 0/2     (and 1/2 beside it; OMP_NUM_THREADS=1; about 40 minutes on two cores)
"""What makes DDIM inversion work as a training trajectory: end x label x moves x eta x learning rate, and beta, off-policy pairs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from scripts.arena import Arena, Run, play_all

PROMPTS, STEPS, BANK = 100, 120, 3


def inversion(end: str, label: str, steps: int, eta: float, renoise: int = 0) -> dict[str, Any]:
    """Return the spec of an inversion driven by the reference."""
    constants = {"steps": steps, "renoise": renoise, "eta": eta, "end": end, "label": label, "driver": "reference"}
    return {"ddim_inversion": constants}


def runs() -> list[Run]:
    """Return Diffusion-DPO, the grid at two learning rates, and what it asked for: beta, and the policy as driver."""

    def run(trajectory: dict[str, Any] | None, rate: float = 1e-3, beta: float = 500.0, cache: int = BANK) -> Run:
        options: dict[str, Any] = {"learning_rate": rate, "beta": beta}
        if trajectory is not None:
            options |= {"trajectory": trajectory, "trajectory_cache": cache}
        return Run("off", "inpo" if trajectory else "diffusion_dpo", options, STEPS, 0, PROMPTS)

    made = [run(None, rate) for rate in (1e-3, 3e-4)]
    for end, steps, eta in itertools.product(("grid", "exact"), (5, 10), (0.0, 0.1)):
        made += [run(inversion(end, "source", steps, eta), rate) for rate in (1e-3, 3e-4)]
    made += [run(inversion(*rest), 1e-3) for rest in itertools.product(("grid", "exact"), ("destination",), (5, 10), (0.0, 0.1))]
    made += [run(inversion(end, "source", 10, 0.0), 1e-3, beta) for beta in (5000.0, 50000.0) for end in ("grid", "exact")]
    made += [run(inversion("exact", "destination", 5, 0.0), rate, beta) for rate, beta in ((3e-4, 500.0), (3e-4, 2000.0), (1e-3, 2000.0))]
    driven = {"ddim_inversion": {**inversion("exact", "source", 5, 0.0)["ddim_inversion"], "driver": "policy"}}
    return [*made, run(driven, cache=0)]


def main(root: str = "outputs/compare", part: str = "0/1", show: bool = False) -> None:
    """Run the ablation (or one part of it) and print it as a table.

    Args:
        root: Folder for pairs and results.
        part: "i/n": the i-th of n blocks of runs.
        show: Only print what was run.
    """
    arena = Arena(Path(root))
    found = [arena.result(run) for run in runs() if arena.has(run)] if show else play_all(arena, runs(), part, "ablation")
    print(
        "| driver | end | label | moves | eta | lr | beta | error at start | win rate | 95 % | adherence | chosen | rejected | acc (own) |"
    )
    print("| --- " * 14 + "|")
    for f in found:
        c = f["options"].get("trajectory", {}).get("ddim_inversion", {})
        shown = [c.get(name, "-") for name in ("driver", "end", "label", "steps", "eta")]
        shown += [f"{f['options']['learning_rate']:g}", f"{f['options']['beta']:g}", f"{-2 * f['train/first_score']:.4f}"]
        shown += [f"{f['win_rate']:.2f}", f"{f['low']:.2f}-{f['high']:.2f}", f"{f['adherence']:.3f}"]
        shown += [f"{f['heldout/chosen']:+.5f}", f"{f['heldout/rejected']:+.5f}", f"{f['train/implicit_acc']:.2f}"]
        print("| " + " | ".join(str(v) for v in shown) + " |")


if __name__ == "__main__":
    auto_cli(main)
