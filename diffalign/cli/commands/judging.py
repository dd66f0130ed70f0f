"""What `diffalign eval agreement` and `diffalign eval ratings` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffalign.cli.options.judging import AgreementConfig, RatingsConfig
from diffalign.core.errors import ConfigError
from diffalign.data.readers.base import Row
from diffalign.evaluate.judgements import SIGNS, Judgements, prompts_in, read_judgements, require, rows_of, verdict_of
from diffalign.rewards.agreement import CONVENTIONS, Estimate, counted, describe, raters

if TYPE_CHECKING:
    from diffalign.evaluate.ratings import Vote


def agreement(config: AgreementConfig) -> int:
    """Print, and write if asked, how well scorers and raters agree."""
    _check_resamples(config.resamples)
    given = {name: getattr(config, name) for name in ("scores", "human", "votes", "prompt", "both_bad")}
    said = read_judgements(config.dataset_name, **given)
    if not counted(said.human)["pairs"]:
        raise ConfigError(
            f"{config.dataset_name}: no two things under one prompt, so nothing to compare; --prompt names the column of prompts"
        )
    if not said.scorers and len(said.raters) < 2:
        print("no --scores are given, and there is one rater at most: only the votes are counted")
    facts: dict[str, Any] = {"human": counted(said.human) | {"unlabelled": said.unlabelled}, "votes": said.counts, "raters": _raters(said)}
    facts["scorers"] = {}
    for name, judged in said.scorers.items():
        if not counted(judged)["pairs"]:
            raise ConfigError(f"{config.dataset_name}: no two things under one prompt have a score `{name}`")
        found = describe(judged, resamples=config.resamples, seed=config.seed)
        facts["scorers"][name] = {"without_score": said.left_out[name]} | found
        print("\n".join(_lines(name, facts["scorers"][name])))
    print("\n".join(_summary(facts)))
    _write(config.destination, facts)
    return 0


def ratings(config: RatingsConfig) -> int:
    """Print, and write if asked, the ratings of models."""
    _check_resamples(config.resamples)
    if bool(config.scores) == bool(config.models or config.votes):
        raise ConfigError("`diffalign eval ratings` needs --models and --votes, or --scores with a column for each model")
    if config.scores and len(set(config.scores)) < 2:
        raise ConfigError("`scores` names one model's column; expected two or more")
    if not config.scores and (len(config.models) != 2 or not config.votes):
        given = f"`models` names {len(config.models)} columns and `votes` {len(config.votes)}"
        raise ConfigError(f"{given}; expected two, of the left and the right model, and at least one")
    from diffalign.evaluate.ratings import bradley_terry, table  # pandas takes a second to import

    votes = _votes(config, rows_of(config.dataset_name))
    rated = bradley_terry(votes, virtual_ties=config.virtual_ties, resamples=config.resamples, seed=config.seed)
    print(table(rated))
    _write(config.destination, [asdict(rating) for rating in rated])
    return 0


def _votes(config: RatingsConfig, rows: Sequence[Row]) -> list[Vote]:
    """Return the votes as cast, or those of a scorer."""
    from diffalign.evaluate.ratings import Vote, votes_of_scores

    require(rows, [*config.models, *config.votes, *config.scores])
    prompts = prompts_in(rows, config.prompt)
    if config.scores:
        return votes_of_scores({model: [row.number(model) for row in rows] for model in dict.fromkeys(config.scores)}, prompts)
    votes: list[Vote] = []
    for row, prompt in zip(rows, prompts, strict=True):
        left, right = (str(row.get(name)) for name in config.models)
        for verdict in (verdict_of(row, name) for name in config.votes):
            if verdict != "both_bad" or config.both_bad == "tie":
                votes.append(Vote(left, right, (1.0 + SIGNS.get(verdict, 0.0)) / 2.0, prompt))
    return votes


RUN: dict[str, Callable[[Any], int]] = {"agreement": agreement, "ratings": ratings}


def _check_resamples(resamples: int) -> None:
    if resamples < 100:
        raise ConfigError(f"`resamples` is {resamples}; expected at least 100, or the ends of an interval mean nothing")


def _write(destination: str | None, facts: Any) -> None:
    if destination is None:
        return
    path = Path(destination)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(facts), indent=2) + "\n", encoding="utf-8")
    print(f"all numbers: {path}")


def _plain(value: Any) -> Any:
    """Return nested results as JSON has them; a number that is none becomes null."""
    if isinstance(value, Estimate):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def _raters(said: Judgements) -> dict[str, dict[str, float]]:
    """Return the agreement of every two raters, on the rows where both give a verdict."""
    found: dict[str, dict[str, float]] = {}
    for one, other in combinations(said.raters, 2):
        both = [(a, b) for a, b in zip(said.raters[one], said.raters[other], strict=True) if a is not None and b is not None]
        if both:
            first, second = zip(*both, strict=True)
            found |= {pair: {"rows": len(both)} | numbers for pair, numbers in raters({one: first, other: second}).items()}
    return found


def _lines(name: str, found: Mapping[str, Any]) -> list[str]:
    """Return what is said of one scorer."""
    missing = f" ({found['without_score']} without a score left out)" if found["without_score"] else ""
    lines = [f"{name}: {found['pairs']} pairs of {found['prompts']} prompts, {found['strict']} strict, {found['ties']} tied{missing}"]
    for title, names in (("accuracy", CONVENTIONS), ("correlation", ("pearson", "spearman", "kendall"))):
        for key in names:
            said = [f"{where} {_shown(found[k])}" for where, k in (("overall", key), ("by prompt", f"{key}_by_prompt")) if k in found]
            if said:
                lines.append(f"  {title:11} {key:12} " + "   ".join(said))
    return [*lines, f"  scores no further apart than {found['tie_threshold']:.4g} are tied in ties_class"]


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    bounds = "no interval" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{estimate.value:.3f} ({bounds}; {estimate.prompts})"


def _summary(facts: Mapping[str, Any]) -> list[str]:
    """Return what is said of the people."""
    human = facts["human"]
    things = f"{human['things']} things, " if "things" in human else ""
    lines = [f"people: {things}{human['pairs']} pairs of {human['prompts']} prompts, {human['strict']} strict, {human['ties']} tied"]
    lines += [
        f"  {name}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) for name, counts in facts["votes"].items()
    ]
    lines += [f"  {pair}: equal {found['agreed']:.3f}, kappa {found['kappa']:.3f}" for pair, found in facts["raters"].items()]
    if human["unlabelled"]:
        lines.append(f"  {human['unlabelled']} records without a label left out")
    return [*lines, "in brackets: 95 % interval; number of prompts"] if facts["scorers"] else lines
