"""How well a scorer agrees with people: pairwise accuracy under three conventions for ties, correlations, kappas, with intervals.

Every interval is a 95 % percentile bootstrap that redraws prompts, not pictures: pictures of one prompt are judged together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from diffalign.core.intervals import FEW

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval, over so many prompts; the bounds are None where fewer than two prompts say anything."""

    value: float
    low: float | None
    high: float | None
    prompts: int


@dataclass(frozen=True, slots=True)
class Items:
    """What people and a scorer say of single things, (N,) each: `group` numbers the prompts from 0, larger `human` is better.

    `comparable`: the human numbers mean the same under every prompt, as ratings do and ranks do not.
    """

    group: NDArray[np.int64]
    human: Floats
    metric: Floats
    comparable: bool = True

    def scored(self, metric: Floats) -> Items:
        """Return the things that have a score, with it: those whose `metric` (N,) is finite."""
        there = np.isfinite(metric)
        return Items(self.group[there], self.human[there], metric[there], self.comparable)

    def comparisons(self) -> Comparisons:
        """Return every pair of things under the same prompt, once."""
        members = members_of(self.group)
        pairs = [np.stack(np.triu_indices(len(m), 1)) for m in members]
        first, second = np.concatenate([m[p] for m, p in zip(members, pairs, strict=True)], axis=1)
        human = np.sign(self.human[first] - self.human[second])
        return Comparisons(self.group[first], human, self.metric[first] - self.metric[second])


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs, (P,) each: `human` is 1 where people prefer the first, -1 the second, 0 a tie; `gap` is first score minus second."""

    group: NDArray[np.int64]
    human: Floats
    gap: Floats

    def scored(self, gap: Floats) -> Comparisons:
        """Return the pairs whose `gap` (P,) is finite, with it."""
        there = np.isfinite(gap)
        return Comparisons(self.group[there], self.human[there], gap[there])


def members_of(group: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the positions of each group's members, in order, by group.

    >>> members_of(np.array([4, 0, 4]))
    [array([1]), array([0, 2])]
    """
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(group) else []


def tie_threshold(pairs: Comparisons) -> float:
    """Return the gap up to which calling a pair tied makes most pairs right (2305.14324, tie calibration); the least of equals."""
    size = np.abs(pairs.gap)
    order = np.argsort(size, kind="stable")
    tied = (pairs.human == 0)[order]
    right = ((pairs.human != 0) & (np.sign(pairs.gap) == pairs.human))[order]
    gained = np.cumsum(tied.astype(int) - right.astype(int))  # against calling none tied, where a gap of 0 is never right
    last = np.append(np.diff(size[order]) > 0, True)  # equal gaps fall together
    best = np.where(last, gained, -len(size) - 1)
    if best.max() <= 0 and size[order][0] > 0:
        return 0.0
    return float(size[order][int(best.argmax())])


def points(pairs: Comparisons, convention: str, threshold: float = 0.0) -> tuple[Floats, NDArray[np.bool_]]:
    """Return what each pair scores in [0, 1], and which pairs count, (P,) each. `convention`:

    `ties_dropped`: pairs that people call tied do not count; where the scores are equal, half a point.
    `ties_half`: one point where both say the same, half where exactly one of the two says tie, none else (2305.01569; reconstructed).
    `ties_class`: one point where both say the same, a tie included, none else (2305.14324); scores that differ by no more than
    `threshold` are tied.
    """
    says = np.where(np.abs(pairs.gap) <= (threshold if convention == "ties_class" else 0.0), 0.0, np.sign(pairs.gap))
    same = (says == pairs.human).astype(float)
    one_tie = (says == 0) != (pairs.human == 0)
    if convention == "ties_class":
        return same, np.ones(len(same), dtype=bool)
    counted = pairs.human != 0 if convention == "ties_dropped" else np.ones(len(same), dtype=bool)
    return np.where(one_tie, 0.5, same), counted


def verdict_accuracy(
    people: Sequence[str], judge: Sequence[str | None], group: NDArray[np.int64], *, unreadable: str, resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """Return the share of pairs (P,) on which a judge gives the verdict of most people, as papers on language models as judges count it.

    A verdict that could not be read (None) is left out with `unreadable` "drop", a wrong one with "wrong", and a tie with "tie".
    Returns None where no verdict is left.
    """
    read = ["tie" if verdict is None and unreadable == "tie" else verdict for verdict in judge]
    kept = [i for i, verdict in enumerate(read) if verdict is not None or unreadable == "wrong"]
    if not kept:
        return None
    _, prompts = np.unique(group[kept], return_inverse=True)
    right = np.array([people[i] == read[i] for i in kept], dtype=float)
    return _share(np.bincount(prompts, right).astype(float), np.bincount(prompts).astype(float), resamples, seed)


CONVENTIONS = ("ties_dropped", "ties_half", "ties_class")


def accuracies(pairs: Comparisons, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate | float | None]:
    """Return the accuracy under each of `CONVENTIONS`, over all pairs and as the mean over prompts, and the calibrated threshold.

    The threshold is chosen on the same pairs, as published, which flatters `ties_class` a little; resampling keeps it.
    """
    threshold = tie_threshold(pairs)
    estimates: dict[str, Estimate | float | None] = {}
    for convention in CONVENTIONS:
        scored, counted = points(pairs, convention, threshold)
        _, group = np.unique(pairs.group[counted], return_inverse=True)
        if not len(group):
            estimates |= {convention: None, f"{convention}_by_prompt": None}
            continue
        total, count = (np.bincount(group, weights).astype(float) for weights in (scored[counted], None))
        estimates[convention] = _share(total, count, resamples, seed)
        estimates[f"{convention}_by_prompt"] = _share(total / count, np.ones(len(count)), resamples, seed)
    return estimates | {"tie_threshold": threshold}


def _share(total: Floats, count: Floats, resamples: int, seed: int) -> Estimate:
    """Return the share sum(total) / sum(count) of groups; of fewer than 30 the interval is the wider one of bootstrap and binomial."""
    share = _ratio(total, count, resamples, seed)
    if share.low is None or share.high is None or share.prompts >= FEW:
        return share
    exact = stats.binomtest(round(share.value * share.prompts), share.prompts).proportion_ci()
    return Estimate(share.value, min(share.low, float(exact.low)), max(share.high, float(exact.high)), share.prompts)


def _ratio(total: Floats, count: Floats, resamples: int, seed: int) -> Estimate:
    """Return sum(total) / sum(count) of groups; where every group has the same share, the interval is the exact binomial one."""
    value, groups = float(total.sum() / count.sum()), len(total)
    if groups < 2:
        return Estimate(value, None, None, groups)
    if np.ptp(total / count) == 0.0:
        exact = stats.binomtest(round(value * groups), groups).proportion_ci()
        return Estimate(value, float(exact.low), float(exact.high), groups)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):  # not all at once: prompts times resamples may be more than memory holds
        rows = rng.integers(groups, size=groups)
        drawn.append(total[rows].sum() / count[rows].sum())
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), groups)


def pearson(human: Floats, metric: Floats) -> float:
    """Return Pearson's correlation; not a number where either side is constant."""
    return float(np.corrcoef(human, metric)[0, 1]) if _varies(human, metric) else float("nan")


def spearman(human: Floats, metric: Floats) -> float:
    """Return Spearman's correlation, ties with their mean rank; not a number where either side is constant."""
    return pearson(*(stats.rankdata(x).astype(float) for x in (human, metric)))


def kendall(human: Floats, metric: Floats) -> float:
    """Return Kendall's tau-b, which allows for ties on both sides; not a number where either side is constant."""
    return float(np.asarray(stats.kendalltau(human, metric))[0]) if _varies(human, metric) else float("nan")


def _varies(human: Floats, metric: Floats) -> bool:
    return len(human) > 1 and float(np.ptp(human)) > 0.0 and float(np.ptp(metric)) > 0.0


CORRELATIONS: dict[str, Callable[[Floats, Floats], float]] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}


def correlations(items: Items, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate | None]:
    """Return each correlation over all things, where the human numbers compare, and as the mean over prompts (`_by_prompt`).

    The mean leaves out prompts where people or the scorer tell no two things apart; `prompts` counts those that are left.
    """
    members = members_of(items.group)
    estimates: dict[str, Estimate | None] = {}
    for name, of in CORRELATIONS.items():
        if items.comparable:
            estimates[name] = _pooled(of, items, members, resamples, seed)
        each = np.array([of(items.human[m], items.metric[m]) for m in members])
        each = each[np.isfinite(each)]
        estimates[f"{name}_by_prompt"] = _mean(each, resamples, seed) if len(each) else None
    return estimates


def _pooled(
    of: Callable[[Floats, Floats], float], items: Items, members: Sequence[NDArray[np.int64]], resamples: int, seed: int
) -> Estimate | None:
    value = of(items.human, items.metric)
    if not np.isfinite(value):
        return None
    if len(members) < 2:
        return Estimate(value, None, None, len(members))
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = np.concatenate([members[m] for m in rng.integers(len(members), size=len(members))])
        drawn.append(of(items.human[rows], items.metric[rows]))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(members))


def _mean(values: Floats, resamples: int, seed: int) -> Estimate:
    """Return the mean of one number a prompt; no bounds where the numbers do not vary."""
    if len(values) < 2 or np.ptp(values) == 0.0:
        return Estimate(float(values.mean()), None, None, len(values))
    return _ratio(values, np.ones(len(values)), resamples, seed)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Return Cohen's kappa (1960) of two raters' verdicts, unweighted: agreement beyond chance; not a number if chance says all.

    >>> cohen_kappa("aabb", "aaba")  # agreed 3 of 4, by chance 1/2 * 3/4 + 1/2 * 1/4 = 1/2
    0.5
    """
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    one, other = Counter(first), Counter(second)
    chance = sum(one[label] * other[label] for label in one) / len(first) ** 2
    return (agreed - chance) / (1.0 - chance) if chance < 1.0 else float("nan")


def majority(verdicts: Sequence[str]) -> str | None:
    """Return the verdict that most raters gave, or None where none has more than every other."""
    (label, most), *rest = Counter(verdicts).most_common()
    return None if rest and rest[0][1] == most else label


def raters(columns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return share of equal verdicts and kappa of every two raters ("a, b")."""
    return {
        f"{one}, {other}": {
            "agreed": sum(a == b for a, b in zip(columns[one], columns[other], strict=True)) / len(columns[one]),
            "kappa": cohen_kappa(columns[one], columns[other]),
        }
        for one, other in combinations(columns, 2)
    }


def describe(rated: Items | Comparisons, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate | float | None]:
    """Return the counts of things, pairs and ties, the accuracies, and of single things the correlations too.

    There must be a pair.
    """
    pairs = rated.comparisons() if isinstance(rated, Items) else rated
    facts = {**counted(rated), **accuracies(pairs, resamples=resamples, seed=seed)}
    return facts | (correlations(rated, resamples=resamples, seed=seed) if isinstance(rated, Items) else {})


def counted(rated: Items | Comparisons) -> dict[str, int]:
    """Return how many things, prompts and pairs there are, and how many of the pairs people call tied."""
    pairs = rated.comparisons() if isinstance(rated, Items) else rated
    things = {"things": len(rated.human)} if isinstance(rated, Items) else {}
    prompts = {"prompts": len(np.unique(rated.group)), "pairs": len(pairs.human)}
    return things | prompts | {"strict": int((pairs.human != 0).sum()), "ties": int((pairs.human == 0).sum())}
