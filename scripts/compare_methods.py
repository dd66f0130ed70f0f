# m=scripts.compare_methods; python -m $m --stage prepare; for i in 0 1; do python -m $m --part $i/2 & done; wait; python -m $m --show
"""All methods on the same pairs of the embedded world: each tuned on a small grid, three seeds, equal steps and equal evaluations.

Off-policy pairs are drawn by the renderer, on-policy ones by the base model. Two harder tables: 20 % of the labels turned round, and
half of the pairs nearly tied. NPO and Self-NPO are judged as negative guidance on the base model against plain guidance, same scale.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli

from scripts.arena import Arena, Run, play_all

STEPS, SEEDS, RECORD_EVALUATIONS = 120, (0, 1, 2), 4  # the last: policy and reference on both images of a pair, Diffusion-DPO's
RATES = (1e-3, 3e-3)  # 1e-2 was tried for Diffusion-DPO and SmPO and destroyed the model (adherence 0.19 to 0.38)
GRID: dict[str, list[dict[str, Any]]] = {
    "diffusion_dpo": [{"beta": beta} for beta in (500.0, 2000.0)],
    "mapo": [{"beta": beta} for beta in (0.1, 1.0)],
    "smpo": [{"beta": beta} for beta in (200.0, 1000.0)],
    "inpo": [{"beta": beta} for beta in (500.0, 2000.0)],
    "diffusion_npo": [{"beta": beta} for beta in (500.0, 2000.0)],
    "self_npo": [{"trajectory": {"self_rollout": {"guidance": guidance}}} for guidance in (-1.0,)],
}
CACHED = {"trajectory_cache": 3}  # for the methods that invert: the reference drives, and its points are computed once
FLIP = {"flip_labels": {"share": 0.2}}
FLIPPED = {
    "smpo": ["pairs", "drop_ties", {"soft_label": {"score": "pickscore"}}, FLIP, "orient"],
    "diffusion_npo": ["pairs", "drop_ties", FLIP, "orient", "invert"],
}
TABLES = ("off", "on", "flipped", "near", "off, equal evaluations", "on, equal evaluations")


def options(method: str, chosen: dict[str, Any], rate: float) -> dict[str, Any]:
    """Return what a run of `method` sets."""
    return {"learning_rate": rate, **chosen, **(CACHED if method in ("smpo", "inpo") else {})}


def tuning(methods: Sequence[str] = tuple(GRID)) -> list[Run]:
    """Return `methods` at every point of their grids: seed 0, off-policy pairs, prompts of their own."""
    return [
        Run("off", method, options(method, chosen, rate), STEPS, 0, 100, tuning=True)
        for method in methods
        for chosen, rate in itertools.product(GRID[method], RATES)
    ]


def probes() -> list[Run]:
    """Return short runs that count the network evaluations of each method without cached points."""
    return [Run("off", method, {"learning_rate": 1e-6}, 4, 0, 4) for method in GRID]


def best(arena: Arena, methods: Sequence[str] = tuple(GRID)) -> dict[str, dict[str, Any]]:
    """Return each method's options with the highest win rate of its grid among those that keep adherence within 0.03 of the best."""
    while missing := sum(not arena.has(run) for run in tuning(methods)):
        print(f"waiting for {missing} tuning runs of other parts", flush=True)
        time.sleep(30)
    found = [arena.result(run) for run in tuning(methods)]
    chosen = {}
    for method in methods:
        own = [f for f in found if f["method"] == method]
        kept = [f for f in own if f["adherence"] >= max(o["adherence"] for o in own) - 0.03]
        chosen[method] = max(kept, key=lambda f: f["win_rate"])["options"]
    return chosen


def runs(table: str, chosen: dict[str, dict[str, Any]], arena: Arena) -> list[Run]:
    """Return the runs of one of `TABLES`."""
    data = {"flipped": "off"}.get(table, table.split(",")[0])
    main = table == "off"
    learners = [method for method in GRID if main or method != "self_npo"]  # Self-NPO sees prompts alone, the same in every table
    made = [Run(data, method, chosen[method], STEPS, seed, 200 if main else 100) for seed in SEEDS for method in learners]
    if table == "flipped":
        usual = ["pairs", "drop_ties", FLIP, "orient"]
        made = [replace(r, options={**r.options, "transforms": FLIPPED.get(r.method, usual)}) for r in made]
    if "evaluations" in table:
        made = [_as_costly(r, arena) for r in made if r.method not in ("diffusion_dpo", "diffusion_npo")]
    return made


def _as_costly(run: Run, arena: Arena) -> Run:
    """Return the run without cached points, its steps scaled to Diffusion-DPO's network evaluations (forward passes of one image)."""
    live = replace(run, options={name: value for name, value in run.options.items() if name != "trajectory_cache"})
    evaluations = next(arena.result(probe)["evaluations"] for probe in probes() if probe.method == run.method)
    return replace(live, steps=round(STEPS * RECORD_EVALUATIONS / evaluations))


def render(arena: Arena, chosen: dict[str, dict[str, Any]]) -> str:
    """Return all tables as Markdown, each row a method: mean of the seeds, and the mean of their intervals."""
    lines = []
    for table in TABLES:
        lines += [
            f"\n**{table}**\n",
            "| method | steps | win rate (95 %) | form | adherence | held-out acc | chosen | rejected | evals | s/step |",
        ]
        lines += ["| --- " * 10 + "|"]
        for method in GRID:
            found = [arena.result(run) for run in runs(table, chosen, arena) if run.method == method and arena.has(run)]
            if found:
                lines.append(row(method, found))
    return "\n".join(lines)


def steering(arena: Arena, chosen: dict[str, dict[str, Any]], known: bool) -> str:
    """Return the table of negative guidance on top of Diffusion-DPO against plain guidance on it; with `known`, of what was run."""
    lines = [
        "\n**negative guidance on Diffusion-DPO, off**\n",
        "| negative | alpha | win rate (95 %) | form | adherence |",
        "| --- " * 5 + "|",
    ]
    for method, alpha in itertools.product(("diffusion_npo", "self_npo"), (1.0, 0.0)):
        under, over = ([Run("off", m, chosen[m], STEPS, seed) for seed in SEEDS] for m in ("diffusion_dpo", method))
        found = [f for u, o in zip(under, over, strict=True) if (f := arena.steered(u, o, alpha, known))]
        if found:
            win, low, high, form, adherence = (
                float(np.mean([f[name] for f in found])) for name in ("win_rate", "low", "high", "form_win_rate", "adherence")
            )
            name = f"{method} ({len(found)} seeds)"
            lines.append(f"| {name} | {alpha:g} | {win:.3f} ({low:.3f} to {high:.3f}) | {form:.3f} | {adherence:.3f} |")
    return "\n".join(lines)


def row(method: str, found: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown row of a method: mean of the seeds, and the mean of their intervals."""
    mean = {name: float(np.mean([f[name] for f in found])) for name in found[0] if isinstance(found[0][name], int | float)}
    cells = [f"{method} ({len(found)} seeds)", f"{mean['steps']:.0f}", f"{mean['win_rate']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"]
    cells += [f"{mean[name]:.3f}" for name in ("form_win_rate", "adherence", "heldout/implicit_acc")]
    cells += [f"{1000 * mean[name]:+.3f}e-3" for name in ("heldout/chosen", "heldout/rejected")]
    return "| " + " | ".join([*cells, f"{mean['evaluations']:.1f}", f"{mean['step_seconds']:.2f}"]) + " |"


def plot(arena: Arena, chosen: dict[str, dict[str, Any]], path: Path) -> None:
    """Write win rates with their intervals, one panel a table, one point a seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(TABLES), figsize=(3 * len(TABLES), 3.2), sharey=True)
    for axis, table in zip(axes, TABLES, strict=True):
        for place, method in enumerate(GRID):
            for run in runs(table, chosen, arena):
                if run.method == method and arena.has(run):
                    f, x = arena.result(run), place + 0.15 * (run.seed - 1)
                    spread = [[f["win_rate"] - f["low"]], [f["high"] - f["win_rate"]]]
                    axis.errorbar(x, f["win_rate"], spread, fmt="o", ms=3, color=f"C{place}")
        axis.axhline(0.5, color="gray", lw=0.8)
        axis.set(title=table, xticks=range(len(GRID)), ylim=(0, 1))
        axis.set_xticklabels(list(GRID), rotation=60, ha="right", fontsize=7)
    axes[0].set_ylabel("win rate against base")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(root: str = "outputs/compare", part: str = "0/1", stage: str = "all", show: bool = False) -> None:
    """Run the comparison (or one part of it); with `show`, only write the tables and the plot of what was run.

    Args:
        root: Folder for pairs and results; results are not computed twice.
        part: "i/n": the i-th of n blocks of every table, for processes side by side.
        stage: prepare (once, before parts that run side by side), tune, one of the tables, steer, or all.
        show: Write comparison.md and comparison.png.
    """
    arena = Arena(Path(root))
    if stage == "prepare":
        arena.prepare(("off", "on", "near"), SEEDS)
    elif not show:
        if stage in ("tune", "all"):
            play_all(arena, [*probes(), *tuning()], part, "tuning")
        for table in TABLES if stage == "all" else [stage] * (stage in TABLES):
            play_all(arena, runs(table, best(arena), arena), part, table)
        if stage in ("steer", "all") and part.startswith("0/"):
            print(steering(arena, best(arena), known=False))
    else:
        chosen = best(arena)
        head = [f"- {method}: {chosen[method]}" for method in GRID]
        text = "\n".join([*head, render(arena, chosen), steering(arena, chosen, known=True), ""])
        (arena.root / "comparison.md").write_text(text)
        plot(arena, chosen, arena.root / "comparison.png")
        print(text)


if __name__ == "__main__":
    auto_cli(main)
