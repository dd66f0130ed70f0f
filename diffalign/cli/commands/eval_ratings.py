"""`diffalign eval ratings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from diffalign.core.errors import ConfigError
from diffalign.evaluate.options import VOTES

if TYPE_CHECKING:
    from diffalign.data.readers.base import Row
    from diffalign.evaluate.ratings import Vote

ABOUT = "rate models by votes between them"
HELP = (
    VOTES
    + """examples:
  diffalign eval ratings --dataset_name votes.csv --models model_0 model_1 --votes vote
  diffalign eval ratings --dataset_name pickscore.csv --scores base dpo rank_dpo
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Rate models by votes between them, or by a scorer: Bradley-Terry strengths in Elo points around 1000, with 95 % intervals."""

    dataset_name: str
    """Dataset file with a vote a row, or a prompt a row."""
    models: list[str] = field(default_factory=list)
    """The two columns that name the left and the right model."""
    votes: list[str] = field(default_factory=list)
    """Columns of votes, one for each rater."""
    scores: list[str] = field(default_factory=list)
    """Instead of models and votes: a column for each model, with the scores of its pictures; on each row the higher score wins."""
    prompt: str | None = None
    """Column that tells prompts apart, whose votes are redrawn together; `prompt`, if there is one."""
    both_bad: Literal["tie", "drop"] = "tie"
    """What a vote that both are bad counts as: a tie, or no vote."""
    virtual_ties: float = 1.0
    """Virtual ties of a model, on average, so that one that never lost has a rating; 1 between two models is Jeffreys' prior."""
    destination: str | None = None
    """Write all numbers to this JSON file too."""
    resamples: int = 2000
    """Redraws for the intervals."""
    seed: int = 0
    """Seed of the redraws."""


def run(config: CONFIG) -> int:
    """Print, and write if asked, the ratings of models."""
    from diffalign.evaluate.judgements import check_resamples, rows_of, write_numbers

    check_resamples(config.resamples)
    if bool(config.scores) == bool(config.models or config.votes):
        raise ConfigError("`diffalign eval ratings` needs --models and --votes, or --scores with a column for each model")
    if config.scores and len(set(config.scores)) < 2:
        raise ConfigError("`scores` names one model's column; expected two or more")
    if not config.scores and (len(config.models) != 2 or not config.votes):
        counts = f"`models` names {len(config.models)} columns and `votes` {len(config.votes)}"
        raise ConfigError(f"{counts}; expected two, of the left and the right model, and at least one")
    from diffalign.evaluate.ratings import bradley_terry, table  # pandas takes a second to import

    votes = _votes(config, rows_of(config.dataset_name))
    rated = bradley_terry(votes, virtual_ties=config.virtual_ties, resamples=config.resamples, seed=config.seed)
    print(table(rated))
    if config.destination is not None:
        write_numbers(config.destination, [asdict(rating) for rating in rated])
        print(f"all numbers: {config.destination}")
    return 0


def _votes(config: CONFIG, rows: Sequence[Row]) -> list[Vote]:
    """Return the votes as cast, or those of a scorer."""
    from diffalign.evaluate.judgements import prompts_in, require
    from diffalign.evaluate.ratings import Vote, votes_of_scores
    from diffalign.evaluate.verdicts import SIGNS, verdict_of

    require(rows, [*config.models, *config.votes, *config.scores])
    prompts = prompts_in(rows, config.prompt)
    if config.scores:
        return votes_of_scores({model: [row.number(model) for row in rows] for model in dict.fromkeys(config.scores)}, prompts)
    votes: list[Vote] = []
    for row, prompt in zip(rows, prompts, strict=True):
        left, right = (str(row.get(name)) for name in config.models)
        for verdict in (verdict_of(row, name) for name in config.votes):
            if verdict is not None and (verdict != "both_bad" or config.both_bad == "tie"):
                votes.append(Vote(left, right, (1.0 + SIGNS.get(verdict, 0.0)) / 2.0, prompt))
    return votes
