"""`diffalign data explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffalign.core.errors import ConfigError
from diffalign.core.specs import Spec
from diffalign.evaluate.options import VOTES

if TYPE_CHECKING:
    from diffalign.evaluate.explain.votes import Votes

ABOUT = "what votes reward, and which look wrong"
HELP = (
    VOTES
    + """A weight is what one typical difference between two candidates adds to the log-odds of being preferred, all others being equal.
Attributes are looks (brightness, sharpness, ...; of texts their length, ...), the table's scores, and with --features directions in
which the pictures' features differ. Votes that look wrong go into --corrections, which `diffalign data correct` applies.
examples:
  diffalign data explain --dataset_name votes --output_dir outputs/explained
  diffalign data explain --dataset_name votes --features pixels --directions 8
  diffalign data explain --dataset_name scored --against pickscore             (the same pairs, labelled by a score)
  diffalign data explain --dataset_name ratings.csv --human human_avg --prompt text_id --scores clipscore_vitb32 tifa_vilt
  diffalign data explain --dataset_name votes --corrections suspects.jsonl --suspects 0.1
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Tell what votes reward: a regression of the labels on differences between the candidates, with 95 % intervals that redraw prompts,
    overall, by user and by source; whether their origin predicts labels; and which votes contradict themselves or look wrong."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id; or with --human or --votes a file of columns."""
    output_dir: str | None = None
    """Folder for explanation.json and explanation.html; beside or in the dataset if not given."""
    scores: list[str] = field(default_factory=list)
    """Scores that may explain the votes; all of a table if not given. Of a file: columns of numbers (of two things NAME_0, NAME_1)."""
    human: str | None = None
    """Of a file: column of ratings of single things, larger is better; every two of a prompt are a vote."""
    votes: str | None = None
    """Of a file: column of votes on two things a row."""
    prompt: str | None = None
    """Of a file: column that tells prompts apart; `prompt`, if there is one."""
    origin: list[str] = field(default_factory=list)
    """Of a file: columns that say where a thing comes from, such as its model."""
    against: str | None = None
    """Another judge of whom to say where it differs: a score of the table, or another table."""
    features: Spec | None = None
    """Features whose directions may explain the votes: pixels, or {clip: {model: PATH}}."""
    directions: int = 8
    """How many directions of the features."""
    sparse_code: int | None = None
    """Instead of directions, so many features of a sparse code of the differences, four of which make up each."""
    corrections: str | None = None
    """Write corrections here that remove the labels of the least likely votes."""
    suspects: float = 0.05
    """Share of the votes that are least likely, for --corrections."""
    turn: bool = False
    """Turn the labels of those votes around, instead of removing them."""
    rows: int = 2000
    """Random records that are looked at, at most."""
    resamples: int = 500
    """Redraws of the prompts for the intervals."""
    seed: int = 0
    """Seed of rows, redraws and held-out parts."""
    device: str = "cpu"
    """Where features are computed."""


def run(config: CONFIG) -> int:
    """Print the findings, and write JSON and page."""
    import json

    from diffalign.core.files import plain, write
    from diffalign.evaluate.explain.attributes import attributes, directions, with_judge
    from diffalign.evaluate.explain.looks import MEANINGS
    from diffalign.evaluate.explain.report import explain
    from diffalign.evaluate.explain.wrong import write_corrections
    from diffalign.evaluate.pages.explanation import page

    _check(config)
    votes, judge, score = _votes(config), None, None
    folder = _folder(config)
    if config.against is not None:
        votes, judge = with_judge(votes, config.against, config.scores, rows=config.rows, seed=config.seed)
        score = None if judge is None or judge[2] else config.against
    differences = attributes(votes, config.scores, without=score)
    if config.features is not None:
        how: dict[str, Any] = {"count": config.directions, "sparse_code": config.sparse_code, "device": config.device, "seed": config.seed}
        differences |= directions(votes, config.features, **how)
    if judge is not None and score is not None:
        judge = (judge[0], judge[1], differences)
    explained = explain(votes, differences, other=judge, resamples=config.resamples, seed=config.seed)
    facts = {"dataset_name": config.dataset_name, "seed": config.seed, "resamples": config.resamples, **explained.facts}
    html = page(explained, title=Path(config.dataset_name).name, meanings=MEANINGS)
    write({folder / "explanation.html": html, folder / "explanation.json": json.dumps(plain(facts), indent=2) + "\n"})
    print("\n".join(_lines(plain(explained.facts))))
    print(f"numbers: {folder / 'explanation.json'}\npage: {folder / 'explanation.html'}")
    if config.corrections is not None:
        count = write_corrections(explained, Path(config.corrections), share=config.suspects, turn=config.turn)
        print(f"{count} votes that look wrong: {config.corrections}; apply them with `diffalign data correct`")
        if (held_out := explained.facts["held_out"]) is not None and held_out["ci95"][0] <= 0.5:
            print("warning: what is measured predicts no votes for certain, and so these may be chance; add scores by which people vote")
    return 0


def _check(config: CONFIG) -> None:
    """Raise ConfigError for flags that cannot be used, before anything is measured."""
    from diffalign.data.table import is_table
    from diffalign.evaluate.explain.wrong import check_corrections
    from diffalign.evaluate.judgements import check_resamples

    check_resamples(config.resamples)
    of_file = config.human is not None or config.votes is not None
    if not of_file and (config.prompt is not None or config.origin):
        raise ConfigError("`prompt` and `origin` name columns of a file; say with --human or --votes which column is what people think")
    if of_file and (config.features is not None or config.corrections is not None):
        raise ConfigError("`features` and `corrections` need a table of candidates, and --human and --votes name columns of a file")
    if config.features is not None and config.against is not None and is_table(config.against):
        raise ConfigError("`features`: directions of one table mean nothing in another; compare with a score, or leave the features out")
    if config.sparse_code is not None and config.features is None:
        raise ConfigError("`sparse_code` is of features; name them with --features, for example pixels")
    if not 0.0 < config.suspects < 1.0:
        raise ConfigError(f"`suspects` is {config.suspects}; expected a share above 0 and below 1")
    for name in ("directions", "sparse_code", "rows"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise ConfigError(f"`{name}` is {value}; expected at least 1")
    if config.corrections is not None:
        check_corrections(Path(config.corrections))


def _votes(config: CONFIG) -> Votes:
    from diffalign.data.importing import open_any
    from diffalign.evaluate.explain.votes import votes_of_rows, votes_of_table
    from diffalign.evaluate.judgements import rows_of

    if config.human is not None or config.votes is not None:
        columns: dict[str, Any] = {name: getattr(config, name) for name in ("scores", "origin", "human", "votes", "prompt")}
        return votes_of_rows(rows_of(config.dataset_name), **columns)
    return votes_of_table(open_any(config.dataset_name), rows=config.rows, seed=config.seed)


def _folder(config: CONFIG) -> Path:
    """Return where the files lie: `output_dir`, else the table's folder. Raises ConfigError where there is neither."""
    from diffalign.data.table import is_table

    if config.output_dir is not None:
        return Path(config.output_dir)
    if not is_table(config.dataset_name):
        raise ConfigError(f"`output_dir`: {config.dataset_name} is no table in a folder of its own; name a folder for the page")
    return Path(config.dataset_name)


def _lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what the terminal shows."""
    counts, held_out = facts["votes"], facts["held_out"]
    people = f", {counts['users']} {'person' if counts['users'] == 1 else 'people'}" if counts["users"] else ""
    lines = [f"{counts['votes']} votes ({counts['ties']} ties), {counts['prompts']} prompts, {counts['candidates']} candidates{people}"]
    for row in facts["attributes"]:
        mark = "*" if row["finding"] else " "
        alone = "" if row["alone"] is None else f"   alone {row['alone']:.0%}"
        missing = f"   missing in {row['missing']} votes" if row["missing"] else ""
        lines.append(f"{mark} {row['name']:24} {row['weight']:+.2f} ({_span(row['ci95'], '+.2f')}){alone}{missing}")
    if facts["attributes"] and counts["decided"] < counts["needed"]:
        why = f"{counts['decided']} decided votes and {len(facts['attributes'])} attributes; it takes {counts['needed']} votes"
        lines.append(f"no intervals and no findings of {why}, or fewer attributes by --scores")
    elif facts["attributes"]:
        lines.append("* a finding; weights are log-odds for one typical difference, with 95 % intervals")
    if held_out is not None:
        lines.append(f"they predict {held_out['accuracy']:.1%} of held-out votes ({_span(held_out['ci95'], '.1%')}); chance is 50%")
    lines += [
        f"warning: {row['column']} alone predicts {row['share']:.0%} of held-out votes "
        f"({_span((row['low'], row['high']), '.0%')}): {row['rule']}"
        for row in facts["origin"]
        if row["warns"]
    ]
    wrong = facts["contradictions"]
    lines.append(
        f"contradictions: {wrong['both_ways']} pairs both ways by one person, {wrong['circles_of_three']} circles of three; "
        f"people differ on {wrong['pairs_on_which_people_differ']} of {wrong['pairs_shared_by_people']} shared pairs"
    )
    return lines + _against(facts.get("against"))


def _against(against: Mapping[str, Any] | None) -> list[str]:
    if against is None:
        return []
    agreed = ""
    if against["agreement"] is not None:
        agreed = f", agreeing in {against['agreement']:.1%} ({_span(against['agreement_ci95'], '.1%')}) of {against['pairs_of_both']} pairs"
    lines = [f"against {against['name']}{agreed}; it differs in:"]
    clear = [row for row in against["attributes"] if row["clear"]]
    lines += [f"  {row['name']:24} {row['weight']:+.2f} -> {row['other']:+.2f} ({_span(row['ci95'], '+.2f')})" for row in clear]
    return lines if clear else [*lines, "  nothing that was measured"]


def _span(ends: Sequence[float | None], form: str) -> str:
    low, high = ends
    return "no interval" if low is None or high is None else f"{low:{form}} to {high:{form}}"
