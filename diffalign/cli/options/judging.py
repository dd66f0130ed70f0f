"""What `diffalign eval agreement` and `diffalign eval ratings` can be told: their flags, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig:
    """Say how well scorers agree with people: pairwise accuracy under three conventions for ties, Pearson, Spearman and Kendall's tau-b,
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
    both_bad: Literal["tie", "drop"] = "tie"
    """What a vote that both are bad counts as: a tie, or no vote."""
    destination: str | None = None
    """Write all numbers to this JSON file too."""
    resamples: int = 1000
    """Redraws of the prompts for the intervals."""
    seed: int = 0
    """Seed of the redraws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingsConfig:
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


VOTES = """votes:
  left     left, leftvote, model_a, a, 1           right   right, rightvote, model_b, b, 2
  a tie    tie, tievote, 0                         bad     bothbad, bothbad_vote, tie (bothbad)
"""
AGREES = (
    VOTES
    + """accuracy:
  ties_dropped   pairs that people call tied do not count; equal scores are half right
  ties_half      one point where both say the same, half where one of the two says tie
  ties_class     one point where both say the same, a tie included; scores no further apart than the threshold are tied, which is chosen
                 on the same pairs
A table's rankings are compared within each ranking; things without a score are left out of that scorer's numbers, and counted.
examples:
  diffalign eval agreement --dataset_name scored --destination agreement.json
  diffalign eval agreement --dataset_name ratings.csv --human human_avg --prompt text_id --scores clipscore_vitb32 tifa_vilt
  diffalign eval agreement --dataset_name votes.csv --votes human_vote --scores pickscore     (pickscore_0 and pickscore_1)
  diffalign eval agreement --dataset_name votes.csv --votes annotator1 annotator2 annotator3 --scores judge
"""
)
RATES = (
    VOTES
    + """examples:
  diffalign eval ratings --dataset_name votes.csv --models model_0 model_1 --votes vote
  diffalign eval ratings --dataset_name pickscore.csv --scores base dpo rank_dpo
"""
)
JUDGING = {
    "agreement": (AgreementConfig, AGREES, "how well scorers agree with people"),
    "ratings": (RatingsConfig, RATES, "rate models by votes between them"),
}
