"""What users, reasons and stages bring to a writer of prompts: python -m scripts.prove_text_votes --what fewshot --seeds "[0, 1, 2]"

On tiny-lm, with rewrites of short prompts that leave the color open, judged by the colors that they name. `fewshot`: users who like warm or
cold colors vote, and a model reads votes of a new one (FSPO). `rationale`: few votes for warm colors, with a short reason or without.
`curriculum`: the best of four rewrites against each other one, in any order, clear pairs first, and with the reference renewed (Curry-DPO).
Rewrites to train on are made by the grammar of the world, as those that tiny-lm was trained on. Intervals are bootstrapped over users or
prompts; the last lines pool the seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.core.intervals import bootstrapped
from diffalign.core.runs import Run
from diffalign.data.fewshot import written
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.world.captions import parse
from diffalign.data.world.checks import is_caption
from diffalign.data.world.rewrites import distance, random_rewrite, short_prompts
from diffalign.data.world.scenes import COLORS
from diffalign.infer.kinds.text import base_writer
from diffalign.infer.load import load
from diffalign.rewards.scorers.implicit import implicit
from diffalign.train.align import align

MODEL, SHOT, HELDOUT = "assets/tiny-lm", "{prompt}\n+ {preferred}\n- {dispreferred}", 128  # prompts that nothing is trained on
PAIRS: list[Any] = ["pairs", "drop_ties", "orient"]
COMMON: dict[str, Any] = {"method": "dpo", "train_batch_size": 16, "precompute_ref_log_probs": False, "overwrite_output_dir": True}
LORA = COMMON | {"learning_rate": 5e-4, "rank": 8, "beta": 1.0}
CONTEXT = COMMON | {"learning_rate": 1e-3, "train_method": "full", "beta": 0.3}
USERS, VOTES, NEW, SHOTS, QUERIES = 80, 12, 60, 4, 3  # to train on, votes of each; new ones, votes that are read, votes that are judged
Vote = tuple[str, str, str]  # prompt, preferred and other rewrite
Numbers = Iterator[tuple[str, str, np.ndarray]]  # a way of training or reading, what is measured, and its values (N,)


def prompts() -> tuple[list[str], list[str]]:
    """Return the short prompts that leave the color open, to train on and held out, the same for every seed."""
    every = [prompt for prompt in short_prompts() if "color" not in parse(prompt)]
    shuffled = [every[place] for place in np.random.default_rng(0).permutation(len(every))]
    return shuffled[HELDOUT:], shuffled[:HELDOUT]


def warmth(text: str) -> float:
    """Return red minus blue of the color that a caption names, in [0, 1] as the taste `warm` has it; 0 for what is no caption."""
    red, _, blue = COLORS.get(parse(text).get("color", ""), (0, 0, 0))
    return 0.5 + (red - blue) / 510.0 if is_caption(text) else 0.0


def vote(shorts: Sequence[str], rng: np.random.Generator, *, warm: bool = True) -> Vote:
    """Return a vote on two rewrites that differ clearly in warmth."""
    while True:
        prompt = shorts[int(rng.integers(len(shorts)))]
        best, worst = sorted((random_rewrite(prompt, rng, add=1.0, drift=0.0) for _ in range(2)), key=warmth, reverse=warm)
        if abs(warmth(best) - warmth(worst)) >= 0.2:
            return prompt, best, worst


def record(number: int, made: Sequence[str], user: str | None = None, context: str | None = None, **meta: str) -> Record:
    """Return rewrites of a prompt as a record; of two the first is preferred."""
    system = (Message("system", context),) if context else ()
    candidates = tuple(Candidate(text=text, scores={"warm": warmth(text)}) for text in made[1:])
    turns, prob = (*system, Message("user", made[0])), 1.0 if len(made) == 3 else None
    return Record(f"{number:05d}", made[0], candidates, prob, user, f"vote {number}", messages=turns, meta=meta)


def ranked(run: Path, votes: Sequence[Record]) -> np.ndarray:
    """Return for each vote (N,) whether the run's log-ratio to its base is larger for the preferred rewrite."""
    scorer: Any = implicit(path=str(run))
    singles = [Record(one.id, one.prompt, (own,), source=one.source, messages=one.messages) for one in votes for own in one.candidates]
    scores = np.concatenate([scorer.of_records(singles[start : start + 64]) for start in range(0, len(singles), 64)]).reshape(-1, 2)
    return (scores[:, 0] > scores[:, 1]).astype(float)


def rewritten(run: Path, shorts: Sequence[str], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield wins of the run's rewrites over tiny-lm's of the same draws, ties half, and the share of attributes that they keep."""
    base, own = (writer(shorts, seed=1000 * seed) for writer in (base_writer(Run.open(run)), load(run)))
    yield "wins", np.array([(np.sign(warmth(b) - warmth(a)) + 1.0) / 2.0 for a, b in zip(base, own, strict=True)])
    yield "kept", np.array([1.0 - distance(prompt, text) for prompt, text in zip(shorts, own, strict=True)])


def fewshot(seed: int, root: Path) -> Numbers:
    """Yield each new user's share (NEW,) of votes ranked rightly, behind votes of a user of the other taste, own votes, and none."""
    (train, held), rng = prompts(), np.random.default_rng([seed, 1])
    people = [(user, place) for user in range(USERS) for place in range(VOTES)]
    votes = [record(user * VOTES + place, vote(train, rng, warm=user % 2 == 0), f"user {user}") for user, place in people]
    own = [[vote(held, rng, warm=user % 2 == 0) for _ in range(SHOTS + QUERIES)] for user in range(NEW)]
    contexts = [written(of_user[:SHOTS], SHOT) for of_user in own]
    behind = {"other's votes": [contexts[user ^ 1] for user in range(NEW)], "own votes": contexts, "nothing": [None] * NEW}
    context = {"fewshot_context": {"shots": SHOTS, "template": SHOT}}
    for way, transforms in (("trained with context", [*PAIRS, context]), ("trained without", PAIRS)):
        run = align(MODEL, votes, output_dir=root / way, transforms=transforms, max_train_steps=60, seed=seed, **CONTEXT)
        for whose, leads in behind.items() if context in transforms else [("nothing", behind["nothing"])]:
            queries = [record(0, one, context=lead) for lead, of_user in zip(leads, own, strict=True) for one in of_user[SHOTS:]]
            yield f"{way}, behind {whose}", "ranked rightly", ranked(run, queries).reshape(NEW, QUERIES).mean(axis=1)


def rationale(seed: int, root: Path) -> Numbers:
    """Yield held-out ranking, wins and meaning kept of runs on 32 votes, with and without the term of the reason."""
    (train, held), rng = prompts(), np.random.default_rng([seed, 2])
    few = [vote(train, rng) for _ in range(32)]
    votes = [record(i, one, rationale=", not ".join(parse(text)["color"] for text in one[1:])) for i, one in enumerate(few)]
    unseen = [record(i, vote(held, rng)) for i in range(200)]
    for weight in (0.0, 0.001, 0.1):
        own: dict[str, Any] = LORA | ({"rationale_weight": weight} if weight else {})
        run = align(MODEL, votes, output_dir=root / f"{weight:g}", transforms=PAIRS, max_train_steps=30, seed=seed, **own)
        for what, values in (("ranked rightly", ranked(run, unseen)), *rewritten(run, held, seed)):
            yield f"weight {weight:g}", what, values


def curriculum(seed: int, root: Path) -> Numbers:
    """Yield wins and meaning kept of runs on the best of four rewrites against each other one."""
    (train, held), rng = prompts(), np.random.default_rng([seed, 3])
    answers = [[random_rewrite(prompt, rng) for _ in range(4)] for prompt in train[:128]]
    records = [record(i, (prompt, *texts)) for i, (prompt, texts) in enumerate(zip(train, answers, strict=False))]
    stages = {"curriculum": {"gap": {"score": "warm", "stages": 3}}}
    ways: dict[str, dict[str, Any]] = {"any order": {}, "clear first": stages, "renewed": stages | {"reference": "old_policy"}}
    ways["any order, a third of beta"] = {"beta": 1 / 3}  # which may go as far as three stages
    each = [{"pairs": {"how": "best_each", "score": "warm"}}, "drop_ties"]
    for way, own in ways.items():
        run = align(MODEL, records, output_dir=root / way, transforms=each, max_train_steps=60, seed=seed, **(LORA | own))
        yield from ((way, what, values) for what, values in rewritten(run, held, seed))


PARTS: dict[str, Callable[[int, Path], Numbers]] = {"fewshot": fewshot, "rationale": rationale, "curriculum": curriculum}


def main(what: Literal["fewshot", "rationale", "curriculum"], seeds: Sequence[int] = (0, 1, 2), root: str = "outputs/text_votes") -> None:
    """Train and judge; print each number of each seed, and of all seeds with how far it lies above that of the first way.

    Args:
        what: fewshot, rationale or curriculum.
        seeds: of votes, trainings and rewrites.
        root: folder of the runs, which are written over.
    """
    torch.set_flush_denormal(True)
    pooled, first = defaultdict[tuple[str, str], list[np.ndarray]](list), dict[str, np.ndarray]()
    for seed in seeds:
        for way, number, values in PARTS[what](seed, Path(root) / what):
            pooled[way, number].append(values)
            print(f"{what}, seed {seed}: {way}, {number} {values.mean():.3f}", flush=True)
    for (way, number), of_seeds in pooled.items():
        values = np.concatenate(of_seeds)
        gap = values - first.setdefault(number, values)
        (low, high), (least, most) = bootstrapped(values, 0), bootstrapped(gap, 0)
        print(f"{what}: {way}, {number} {values.mean():.3f} ({low:.3f} to {high:.3f}), {gap.mean():+.3f} ({least:+.3f} to {most:+.3f}) "
              "above the first", flush=True)  # fmt: skip


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
