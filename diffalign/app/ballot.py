"""What the vote page asks of the server: the next questions of a voter, a vote, the last one undone, a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from scipy.stats import binomtest

from diffalign.app.limits import Pace
from diffalign.app.voters import AccessError
from diffalign.core.errors import RecordError
from diffalign.data.questions import RANKED, RANKING, Choose, Order, Question
from diffalign.data.store import VoteStore

AHEAD = 3  # questions that a page holds, so that the next pictures are there before they are needed
ENOUGH = 60  # votes of which a model can learn a taste that one sees
REASONS = ("prompt", "anatomy", "text", "colour", "composition", "style")


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes of one store, as a page sees them. Every method takes the voter's name, and shows nobody another one's questions."""

    store: VoteStore
    repeats: float = 0.0  # share of questions that are asked twice
    choose: Callable[[str], Choose] | None = None  # a voter's chooser of the next pair
    order: Order = "balanced"
    ranking: bool = False  # four pictures to put in order, instead of two to choose from
    second_question: str = ""  # of each pair, which may be left open
    ahead: int = AHEAD
    enough: int | None = ENOUGH  # votes that the page tells a voter to reach
    pace: Pace = field(default_factory=lambda: Pace(60, 10.0))  # of one voter's votes; a hand does not vote faster

    def state(self, voter: str) -> dict[str, Any]:
        """Return the voter's next questions and progress, as the page's script reads them."""
        choose = self.choose(voter) if self.choose else None
        questions = self.store.questions(voter, self.ahead, ranking=self.ranking, order=self.order, choose=choose, repeats=self.repeats)
        return {
            "questions": [self._shown(question) for question in questions],
            "progress": self.progress(voter),
            "reasons": REASONS,
            "second_question": self.second_question,
        }

    def vote(
        self, voter: str, question: str, answer: str, reasons: Sequence[str] = (), ranks: Sequence[int] = (), second_answer: str = ""
    ) -> dict[str, Any]:
        """Record a vote and return the new state, with what drew the pictures.

        Raises RecordError for a question of somebody else, or an answer or reason that is none; AccessError for votes faster than a hand.
        """
        unknown = [reason for reason in reasons if reason not in REASONS]
        if unknown:
            raise RecordError(f"there is no reason {unknown[0]!r}; expected some of {', '.join(REASONS)}")
        if not self.pace.allows(voter):
            raise AccessError(f"more than {self.pace.count} votes in {self.pace.seconds:g} seconds; wait a moment")
        second = {"second_question": self.second_question, "second_answer": second_answer}
        counted = self.store.vote(question, voter, answer, ranks=ranks, reasons=reasons, **second)
        models = [picture.model for picture in self.store.question(question).pictures]
        return self.state(voter) | {"last": {"answer": counted.answer, "models": models}}

    def undo(self, voter: str) -> dict[str, Any]:
        """Withdraw the voter's last vote and return the new state, which begins with its question."""
        undone = self.store.undo(voter, ranking=self.ranking)
        return self.state(voter) | {"undone": undone is not None}

    def progress(self, voter: str) -> dict[str, Any]:
        """Return how many votes there are, how many are enough, and how far the voter agrees with himself, with its interval.

        A ranking counts as the comparisons of each picture with the next.
        """
        answers = self.store.answers(voter)
        same, repeated = self.store.consistency(voter)
        votes = sum(count * (RANKED - 1 if answer == RANKING else 1) for answer, count in answers.items() if answer != "skip")
        return {"votes": votes, "enough": self.enough, "agreement": _share(same, repeated) if repeated else None, "repeated": repeated}

    def _shown(self, question: Question) -> dict[str, Any]:
        """Return what the page is told of a question: not what drew the pictures."""
        return {"id": question.id, "prompt": question.prompt, "pictures": [picture.file.name for picture in question.pictures]}


@lru_cache(maxsize=1024)  # of a few numbers, and asked for at every vote
def _share(count: int, total: int) -> tuple[float, float, float]:
    """Return a share with its 95 % interval, after Wilson."""
    span = binomtest(count, total).proportion_ci(method="wilson")
    return count / total, float(span.low), float(span.high)
