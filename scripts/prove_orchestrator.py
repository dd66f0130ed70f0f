"""Whether weights that are read from the prompt beat every fixed weighting: python -m scripts.prove_orchestrator

On the embedded world, where prompts of four shapes want warm colours and those of the other four a bright ground, and a tenth of the votes
is wrong. The two scores are of unlike scales (100 and 0.01). `reward_orchestrator` learns from three quarters of the prompts, by votes and
by the paper's loss; all ways are judged on pictures of the other prompts. The fixed weighting is the best of 101 on these very pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from diffalign.core.intervals import bootstrapped
from diffalign.core.runs import Run
from diffalign.data.table import write_table
from diffalign.rewards.combine import combiner_of
from scripts.bench_heads import BOTH, World, run

SCALES = dict(zip(BOTH, (100.0, 0.01), strict=True))
WRONG = 0.1
FIXED = "the best fixed weights"


def scores_of(world: World) -> dict[str, np.ndarray]:
    """Return both scores of all pictures, (N,)."""
    return {name: scale * world.value(name) for name, scale in SCALES.items()}


def prompts_of(world: World) -> list[str]:
    """Return the prompt of every group of pictures."""
    return [world.pictures[group[0]][0] for group in world.groups]


def trained(root: Path, world: World, held_out: set[str], seed: int, learn: str) -> str:
    """Train on the votes on all prompts but those held out; return the folder of the run."""
    rng, table = np.random.default_rng(seed), root / f"votes-{seed}"
    if not table.is_dir():
        votes = [vote for vote in world.votes(world.by_prompt(), scores_of(world)) if vote.prompt not in held_out]
        wrong = rng.random(len(votes)) < WRONG
        votes = [replace(vote, prob=1.0 - (vote.prob or 0.0)) if flip else vote for vote, flip in zip(votes, wrong, strict=True)]
        write_table(table, votes)
    folder = root / f"run-{seed}-{learn}"
    return str(folder) if Run.is_in(folder) else run("orchestrator", table, folder, seed, learn=learn)


def reached(world: World, kept: Sequence[int], rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each group its share of rightly ordered pairs, and the true value of its best picture by rewards (G, K)."""
    truth = world.by_prompt()[np.array(world.groups)[list(kept)]]
    gaps, mine = (x[:, :, None] - x[:, None, :] for x in (truth, rewards))
    right = np.where(gaps > 0.0, (mine > 0.0) + 0.5 * (mine == 0.0), 0.0).sum(axis=(1, 2)) / np.maximum((gaps > 0.0).sum(axis=(1, 2)), 1)
    return right, np.take_along_axis(truth, rewards.argmax(axis=1)[:, None], axis=1)[:, 0]


def of_seed(root: Path, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what each way of combining reaches on the held-out prompts of a seed."""
    world, other = World(seed, 96), World(1000 + seed, 96)
    held_out = set(sorted(set(prompts_of(world)))[::4])
    kept = [place for place, prompt in enumerate(prompts_of(other)) if prompt in held_out]
    tables = {name: values[np.array(other.groups)[kept]] for name, values in scores_of(other).items()}
    standard = {name: (table - table.mean()) / table.std() for name, table in tables.items()}
    fixed = [w * standard[BOTH[0]] + (1.0 - w) * standard[BOTH[1]] for w in np.linspace(0.0, 1.0, 101)]
    best = max(fixed, key=lambda rewards: reached(other, kept, rewards)[0].mean())
    ways = {"the plain sum": tables[BOTH[0]] + tables[BOTH[1]], "equal weights, standardised": fixed[50], FIXED: best}
    prompts = [prompts_of(other)[place] for place in kept]
    for learn, name in (("scores", "prompt_weights, learnt from preferred scores"), ("votes", "prompt_weights, learnt from votes")):
        folder = trained(root, world, held_out, seed, learn)
        ways[name] = combiner_of({"prompt_weights": {"path": folder}}).under(tables, prompts)
    ways["the score that the prompt wants"] = np.array([[other.by_prompt()[p] for p in other.groups[place]] for place in kept])
    return {name: reached(other, kept, rewards) for name, rewards in ways.items()}


def main(root: Path = Path("outputs/orchestrator"), seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Print the table.

    Args:
        root: where tables and runs are written.
        seeds: of pictures, votes and training, pooled.
    """
    of_seeds = [of_seed(root, seed) for seed in seeds]
    print(f"{sum(len(one[FIXED][0]) for one in of_seeds)} groups of eight pictures, pooled; intervals over groups")
    heads = (
        "combined by",
        "pairs ordered rightly",
        "of each seed",
        "more than by the best fixed weights",
        "true value of the best of eight",
    )
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name in of_seeds[0]:
        right, value, fixed = (np.concatenate([one[way][side] for one in of_seeds]) for way, side in ((name, 0), (name, 1), (FIXED, 0)))
        each = ", ".join(f"{one[name][0].mean():.3f}" for one in of_seeds)
        print(f"| {name} | {in_words(right)} | {each} | {in_words(right - fixed)} | {in_words(value)} |", flush=True)


def in_words(values: np.ndarray) -> str:
    """Return the mean over prompts, with its interval."""
    low, high = bootstrapped(values, 0)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    auto_cli(main)
