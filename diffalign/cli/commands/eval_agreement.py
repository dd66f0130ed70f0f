"""`diffalign eval agreement`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from diffalign.core.errors import ConfigError
from diffalign.evaluate.options import VOTES

if TYPE_CHECKING:
    from diffalign.evaluate.judgements import Judgements
    from diffalign.rewards.agreement import Estimate

ABOUT = "how well scorers agree with people"
HELP = (
    VOTES
    + """accuracy:
  ties_dropped   pairs that people call tied do not count; equal scores are half right
  ties_half      one point where both say the same, half where one of the two says tie
  ties_class     one point where both say the same, a tie included; scores no further apart than the threshold are tied, which is chosen
                 on the same pairs
  verdicts       of votes: share of pairs with the same verdict, as published for language models as judges; with --both_bad class
                 "both are bad" is a fourth verdict, and with --unreadable wrong or tie an answer without a verdict counts
A table's rankings are compared within each ranking; things without a score are left out of that scorer's numbers, and counted.
examples:
  diffalign eval agreement --dataset_name scored --destination agreement.json
  diffalign eval agreement --dataset_name ratings.csv --human human_avg --prompt text_id --scores clipscore_vitb32 tifa_vilt
  diffalign eval agreement --dataset_name votes.csv --votes human_vote --scores pickscore     (pickscore_0 and pickscore_1)
  diffalign eval agreement --dataset_name votes.csv --votes annotator1 annotator2 annotator3 --scores judge
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Tell how well scorers agree with people: pairwise accuracy under three conventions for ties, Pearson, Spearman and Kendall's tau-b,
    over all and by prompt, with 95 % intervals that redraw prompts; and how well people agree with each other."""

    dataset_name: str
    """Preference table with scores (its votes, ranks or `human` ratings are the people), or a dataset file with columns."""
    scores: list[str] = field(default_factory=list)
    """Scorers. Of a table: its named scores, all of them if not given. Of ratings: columns of numbers. Of votes: NAME for two columns
    NAME_0 and NAME_1 with the scores of the left and the right, or one column of verdicts in the words of votes."""
    human: str | None = None
    """What people say of single things, larger is better: a column of numbers, or a named score of a table."""
    votes: list[str] = field(default_factory=list)
    """What people say of two things: columns of votes, one for each rater; several are compared with each other and judged by majority."""
    prompt: str | None = None
    """Column that tells prompts apart; `prompt`, if there is one. Without it every vote stands for itself."""
    both_bad: Literal["tie", "drop", "class"] = "tie"
    """What a vote that both are bad counts as: a tie, no vote, or for the accuracy `verdicts` a verdict of its own (else a tie)."""
    unreadable: Literal["drop", "wrong", "tie"] = "drop"
    """What a judge's answer without a verdict counts as in the accuracy `verdicts`: it is left out, wrong, or a tie."""
    destination: str | None = None
    """Write all numbers to this JSON file too."""
    resamples: int = 1000
    """Redraws of the prompts for the intervals."""
    seed: int = 0
    """Seed of the redraws."""


def run(config: CONFIG) -> int:
    """Print, and write if asked, how well scorers and raters agree."""
    from diffalign.evaluate.judgements import check_resamples, read_judgements, write_numbers
    from diffalign.rewards.agreement import counted, describe

    check_resamples(config.resamples)
    options = {name: getattr(config, name) for name in ("scores", "human", "votes", "prompt", "both_bad")}
    judgements = read_judgements(config.dataset_name, **options)
    if not counted(judgements.human)["pairs"]:
        raise ConfigError(
            f"{config.dataset_name}: no two things under one prompt, so nothing to compare; --prompt names the column of prompts"
        )
    if not judgements.scorers and len(judgements.raters) < 2:
        print("there are no --scores, and one rater at most: only the votes are counted")
    facts: dict[str, Any] = {
        "human": counted(judgements.human) | {"unlabelled": judgements.unlabelled},
        "votes": judgements.counts,
        "raters": _raters(judgements),
    }
    facts["scorers"] = {}
    for name, pairs in judgements.scorers.items():
        if not counted(pairs)["pairs"]:
            raise ConfigError(f"{config.dataset_name}: no two things under one prompt have a score `{name}`")
        numbers = describe(pairs, resamples=config.resamples, seed=config.seed)
        facts["scorers"][name] = {"without_score": judgements.left_out[name]} | numbers | _verdicts(config, judgements, name)
        print("\n".join(_lines(name, facts["scorers"][name])))
    print("\n".join(_summary(facts)))
    if config.destination is not None:
        write_numbers(config.destination, facts)
        print(f"all numbers: {config.destination}")
    return 0


def _verdicts(config: CONFIG, judgements: Judgements, name: str) -> dict[str, Any]:
    """Return how often a judge of votes gives the same verdict as people."""
    from diffalign.rewards.agreement import verdict_accuracy

    if name not in judgements.judges:
        return {}
    options: dict[str, Any] = {"unreadable": config.unreadable, "resamples": config.resamples, "seed": config.seed}
    return {"verdicts": verdict_accuracy(judgements.people, judgements.judges[name], judgements.human.group, **options)}


def _raters(judgements: Judgements) -> dict[str, dict[str, float]]:
    """Return the agreement of every two raters, on the rows where both give a verdict."""
    from diffalign.rewards.agreement import raters

    agreements: dict[str, dict[str, float]] = {}
    for one, other in combinations(judgements.raters, 2):
        both = [(a, b) for a, b in zip(judgements.raters[one], judgements.raters[other], strict=True) if a is not None and b is not None]
        if both:
            first, second = zip(*both, strict=True)
            agreements |= {pair: {"rows": len(both)} | numbers for pair, numbers in raters({one: first, other: second}).items()}
    return agreements


def _lines(name: str, numbers: Mapping[str, Any]) -> list[str]:
    """Return the lines of one scorer."""
    from diffalign.rewards.agreement import CONVENTIONS

    missing = f" ({numbers['without_score']} without a score left out)" if numbers["without_score"] else ""
    lines = [
        f"{name}: {numbers['pairs']} pairs of {numbers['prompts']} prompts, {numbers['strict']} strict, {numbers['ties']} tied{missing}"
    ]
    for title, names in (("accuracy", (*CONVENTIONS, "verdicts")), ("correlation", ("pearson", "spearman", "kendall"))):
        for key in names:
            shown = [f"{where} {_shown(numbers[k])}" for where, k in (("overall", key), ("by prompt", f"{key}_by_prompt")) if k in numbers]
            if shown:
                lines.append(f"  {title:11} {key:12} " + "   ".join(shown))
    return [*lines, f"  scores no further apart than {numbers['tie_threshold']:.4g} are tied in ties_class"]


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    bounds = "no interval" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{estimate.value:.3f} ({bounds}; {estimate.prompts})"


def _summary(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines about the people."""
    human = facts["human"]
    things = f"{human['things']} things, " if "things" in human else ""
    lines = [f"people: {things}{human['pairs']} pairs of {human['prompts']} prompts, {human['strict']} strict, {human['ties']} tied"]
    lines += [
        f"  {name}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) for name, counts in facts["votes"].items()
    ]
    lines += [f"  {pair}: equal {agreement['agreed']:.3f}, kappa {agreement['kappa']:.3f}" for pair, agreement in facts["raters"].items()]
    if human["unlabelled"]:
        lines.append(f"  {human['unlabelled']} records without a label left out")
    return [*lines, "in brackets: 95 % interval; number of prompts"] if facts["scorers"] else lines
