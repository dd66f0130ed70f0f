"""Votes on pictures, in one SQLite file with a folder of pictures beside it: who was shown what, and what they answered.

The store gives every question that it asks an id, and of all answers to an id the first counts: a double click, a retry or a second tab
is one vote. A vote is one short transaction, and on the disk before it is confirmed. Nothing is overwritten: an undone vote is kept.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from diffalign.core.errors import RecordError, TableError
from diffalign.core.files import atomic_file
from diffalign.data import store_schema as sql
from diffalign.data.next_question import CANDIDATES, open_pairs, open_ranking
from diffalign.data.pictures import decode_image, read_header
from diffalign.data.questions import (
    ANSWERS,
    NO_SEED,
    PROBABILITIES,
    RANKING,
    SECOND_ANSWERS,
    CastVote,
    Choose,
    Compared,
    OpenPair,
    Order,
    Question,
    ShownPicture,
    compared,
)
from diffalign.data.records import Candidate, Record
from diffalign.data.store_file import StoreFile

SUFFIXES = (".db", ".sqlite", ".sqlite3")


class VoteStore:
    """A vote store, made if there is none at `path`. One object serves all threads of a process; several processes may open a file.

    Raises TableError for a file that is no vote store or of a newer version.

    Example:
        >>> with VoteStore("votes.db") as store:  # doctest: +SKIP
        ...     store.add_pictures("a red star", [left, right], model="tiny-sd", seeds=[0, 1])
        ...     (question,) = store.questions("ada")
        ...     store.vote(question.id, "ada", "left")
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.folder = self.path.with_name(f"{self.path.name}.pictures")
        if read_only and not self.path.is_file():
            raise TableError(f"{self.path}: there is no such vote store")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = StoreFile(self.path, read_only=read_only)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> VoteStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _user(self, name: str) -> int:
        """Return the number of a user, who is added if new."""
        rows = self._file.rows("SELECT id FROM users WHERE name = ?", name)
        if rows:
            return rows[0][0]
        with self._file.transaction() as database:
            database.execute("INSERT OR IGNORE INTO users (name, created) VALUES (?, ?)", (name, time.time()))
            return self._user(name)

    # Pictures

    def add_pictures(
        self,
        prompt: str,
        images: Sequence[bytes],
        *,
        model: str = "",
        seeds: Sequence[int] | None = None,
        same_seed: bool = False,
        pairs: Collection[tuple[int, int]] | None = None,
    ) -> int:
        """Add encoded pictures of a prompt, and every pair of them with each other and with those that were there; return how many are new.

        With `same_seed` only pictures of different models from one seed become pairs, with `pairs` only these, by place among `images`.
        Raises RecordError for what does not decode.
        """
        files = [self._keep(image, f"{self.path}, picture {n} of {prompt!r}") for n, image in enumerate(images)]
        with self._file.transaction() as database:
            database.execute("INSERT OR IGNORE INTO prompts (text) VALUES (?)", (prompt,))
            ((number,),) = database.execute("SELECT id FROM prompts WHERE text = ?", (prompt,)).fetchall()
            new = 0
            for file, seed in zip(files, seeds or [NO_SEED] * len(files), strict=True):
                row = (number, file, model, seed, time.time())
                added = database.execute("INSERT OR IGNORE INTO pictures (prompt, file, model, seed, added) VALUES (?, ?, ?, ?, ?)", row)
                if added.rowcount:
                    new += 1
                    pair = (added.lastrowid, number, file)
                    if pairs is None:
                        database.execute(*((sql.PAIR_OF_SEED, (*pair, seed, model)) if same_seed else (sql.PAIR_WITH_EARLIER, pair)))
            for first, second in pairs or ():
                database.execute(sql.PAIR_OF_FILES, (number, model, files[first], files[second]))
        return new

    def pairs(self) -> int:
        """Return how many pairs there are."""
        return self._file.rows("SELECT COUNT(*) FROM pairs")[0][0]

    def unseen(self) -> int:
        """Return how many pairs nobody was shown."""
        return self._file.rows("SELECT COUNT(*) FROM pairs WHERE times_shown = 0")[0][0]

    def count(self, prompt: str, model: str) -> int:
        """Return how many pictures of a prompt a model has drawn."""
        return self._file.rows(sql.COUNT, prompt, model)[0][0]

    def prompts(self) -> list[str]:
        """Return all prompts, in the order in which they came."""
        return [text for (text,) in self._file.rows("SELECT text FROM prompts ORDER BY id")]

    def models(self) -> list[str]:
        """Return the names of all that drew, in the order in which they came."""
        return [name for (name,) in self._file.rows("SELECT model FROM pictures GROUP BY model ORDER BY MIN(id)")]

    def pictures(self, prompt: str, model: str) -> dict[int, Path]:
        """Return the files of a model's pictures of a prompt, by seed."""
        return {seed: self.folder / file for seed, file in self._file.rows(sql.PICTURES_BY_SEED, prompt, model)}

    def add_records(self, records: Iterable[Record]) -> int:
        """Add the pictures of a dataset's records as pairs to vote on, without its own labels; return how many are new."""
        new = 0
        for record in records:
            if record.kind != "image":
                raise RecordError(f"{record.source}: found {record.kind}s; expected pictures to vote on")
            for candidate in record.candidates:
                assert candidate.image is not None  # of a record of images
                new += self.add_pictures(candidate.prompt or record.prompt, [candidate.image], model=candidate.model or "")
        return new

    def _keep(self, image: bytes, where: str) -> str:
        """Write a picture under its hash, unless it is there, and return the name of its file inside the folder."""
        decode_image(image, where)
        kind = read_header(image, where).format.lower()
        digest = hashlib.sha256(image).hexdigest()
        name = f"{digest[:2]}/{digest}.{kind}"
        if not (self.folder / name).exists():
            with atomic_file(self.folder / name) as file:
                file.write_bytes(image)
        return name

    # Questions and votes

    def questions(
        self,
        user: str,
        count: int = 1,
        *,
        ranking: bool = False,
        order: Order = "balanced",
        choose: Choose | None = None,
        repeats: float = 0.0,
        rng: random.Random | None = None,
    ) -> list[Question]:
        """Return the next questions of a user: those that are still unanswered, then new ones; fewer than `count` where none is left.

        Args:
            user: name of the voter, added if new.
            count: how many, so that a page can load the next pictures while one looks at these.
            ranking: ask to rank four pictures instead of comparing two. A picture is ranked once by each user.
            order: "balanced" asks about the prompts that this user saw least, and of their pairs about those that were shown least;
                "random" about any prompt.
            choose: picks one of up to 64 open pairs of several prompts in this order; the first if None.
            repeats: share in [0, 1] of comparisons that repeat an earlier one with the sides exchanged, to measure consistency.
            rng: of the sides and repeats.
        """
        voter, rng = self._user(user), rng or random.Random()  # noqa: S311, decides what is shown and protects nothing
        waiting, chosen = self._waiting(voter, ranking, count), list[OpenPair]()

        def ask(database: sqlite3.Connection) -> str | None:
            if ranking:
                return self._ask_to_rank(database, voter)
            again = self._earlier(voter, repeats) if repeats and rng.random() < repeats else None
            return self._ask_again(voter, again) if again else self._ask(database, voter, order, chosen, rng)

        if len(waiting) < count:
            # Before others have to wait: a chooser may look at many pictures.
            chosen = self._chosen(voter, count - len(waiting), order, choose) if choose and not ranking else []
            with self._file.transaction(flush=False) as database:  # in which another tab of this user may have asked meanwhile
                waiting = self._waiting(voter, ranking, count)
                while len(waiting) < count and (new := ask(database)) is not None:
                    waiting.append(new)
        return [self.question(name) for name in waiting]

    def _waiting(self, voter: int, ranking: bool, count: int) -> list[str]:
        return [name for (name,) in self._file.rows(sql.UNANSWERED, voter, ranking, count)]

    def _chosen(self, voter: int, count: int, order: Order, choose: Choose) -> list[OpenPair]:
        """Return up to `count` pairs that a chooser picks, one after the other."""
        pairs = open_pairs(self._file.rows, voter, order, CANDIDATES, self._picture)
        return [pairs.pop(choose(pairs)) for _ in range(min(count, len(pairs)))]

    def _ask(self, database: sqlite3.Connection, voter: int, order: Order, chosen: list[OpenPair], rng: random.Random) -> str | None:
        """Ask about the first of the chosen pairs that the user has not compared yet, or of all open ones; None if there is none."""
        while chosen:
            pair = chosen.pop(0)
            if not database.execute(sql.WAS_SHOWN, (voter, pair.id)).fetchone():
                break
        else:
            pair = next(iter(open_pairs(self._file.rows, voter, order, 1, self._picture)), None)
        if pair is None:
            return None
        sides = [pair.first.id, pair.second.id]
        rng.shuffle(sides)
        return self._show(voter, pair.prompt, pair.id, sides)

    def _ask_to_rank(self, database: sqlite3.Connection, voter: int) -> str | None:
        """Ask to rank four pictures that the user has not ranked yet; None if no prompt has four."""
        unranked = open_ranking(self._file.rows, voter)
        if unranked is None:
            return None
        prompt, pictures = unranked
        name = self._show(voter, prompt, None, pictures)
        database.execute(sql.RANKED_PAIRS, (name,))
        return name

    def _earlier(self, voter: int, repeats: float) -> str | None:
        """Return a question that the user decided a while ago, and that was not repeated yet; None where enough were for that share.

        For who waits for new pictures asks again and again, and would get nothing but repeats.
        """
        ((shown, repeated),) = self._file.rows(sql.SHOWN_AND_REPEATED, voter)
        if repeated + 1 > repeats * (shown + 1):
            return None
        rows = self._file.rows(sql.REPEATABLE, voter)
        return rows[0][0] if rows else None

    def _ask_again(self, voter: int, earlier: str) -> str:
        question = self.question(earlier)
        ((pair,),) = self._file.rows("SELECT pair FROM shown WHERE id = ?", earlier)
        return self._show(voter, question.prompt, pair, [picture.id for picture in reversed(question.pictures)], earlier)

    def _show(self, voter: int, prompt: str, pair: int | None, pictures: Sequence[int], repeats: str | None = None) -> str:
        name = uuid.uuid4().hex
        rows = [(name, position, picture) for position, picture in enumerate(pictures)]
        with self._file.transaction(flush=False) as database:
            database.execute(sql.SHOW, (name, voter, prompt, pair, repeats, time.time()))
            database.executemany("INSERT INTO shown_pictures VALUES (?, ?, ?)", rows)
            database.execute("UPDATE pairs SET times_shown = times_shown + 1 WHERE id = ?", (pair,))
        return name

    def question(self, name: str) -> Question:
        """Return a question by its id. Raises RecordError if there is none."""
        rows = self._file.rows(sql.QUESTION, name)
        if not rows:
            raise RecordError(f"{self.path}: there is no question `{name[:40]}`")
        user, prompt, repeats = rows[0]
        pictures = tuple(self._picture(*row) for row in self._file.rows(sql.PICTURES_OF, name))
        return Question(name, user, prompt, pictures, repeats)

    def _picture(self, number: int, file: str, model: str, seed: int) -> ShownPicture:
        return ShownPicture(number, self.folder / file, model, None if seed == NO_SEED else seed)

    def vote(
        self,
        question: str,
        user: str,
        answer: str,
        *,
        ranks: Sequence[int] = (),
        reasons: Sequence[str] = (),
        second_question: str = "",
        second_answer: str = "",
    ) -> CastVote:
        """Record a user's answer and return the vote that counts: this one, or the first if the question was answered before.

        Raises RecordError for a question that was not put to this user, or for an answer that does not fit it.
        """
        shown = self.question(question)
        if shown.user != user:
            raise RecordError(f"{self.path}: the question `{question}` was not put to {user!r}")
        self._check(shown, answer, ranks)
        if second_answer not in SECOND_ANSWERS:
            raise RecordError(
                f"{self.path}: the second answer is {second_answer!r}; expected one of {', '.join(SECOND_ANSWERS[1:])}, or none"
            )
        row = (question, self._user(user), answer, json.dumps(list(ranks)), json.dumps(list(reasons)), second_answer, time.time())
        with self._file.transaction() as database:
            database.execute(sql.VOTE, (*row, second_question if second_answer else ""))
        (vote,) = self._votes(question=question)
        return vote

    def _check(self, shown: Question, answer: str, ranks: Sequence[int]) -> None:
        if answer == RANKING:
            if len(ranks) != len(shown.pictures) or not all(1 <= rank <= len(ranks) for rank in ranks):
                raise RecordError(f"{self.path}: the ranks are {list(ranks)}; expected one from 1 to {len(shown.pictures)} a picture")
        elif answer not in ANSWERS or ranks or (len(shown.pictures) != 2 and answer != "skip"):
            raise RecordError(f"{self.path}: the answer is {answer!r}; expected {', '.join(ANSWERS)}, or {RANKING} with ranks")

    def undo(self, user: str, *, ranking: bool = False) -> Question | None:
        """Withdraw the user's last vote, or last ranking, and return its question, which is asked again next; None if there is none."""
        with self._file.transaction() as database:
            row = database.execute(sql.LAST_VOTE, (self._user(user), ranking)).fetchone()
            if row is None:
                return None
            database.execute("UPDATE votes SET withdrawn = ? WHERE id = ?", (time.time(), row[0]))
            return self.question(row[1])

    def correct(self, question: str, editor: str, answer: str | None) -> None:
        """Put an owner's answer in the place of the vote that counts, or none; the voter's own one is kept as withdrawn."""
        if answer is not None:
            self._check(self.question(question), answer, ())
        with self._file.transaction() as database:
            database.execute("UPDATE votes SET withdrawn = ? WHERE shown = ? AND withdrawn IS NULL", (time.time(), question))
            if answer is not None:
                database.execute(sql.VOTE, (question, self._user(editor), answer, "[]", "[]", "", time.time(), ""))

    # What was voted

    def votes(self, user: str | None = None) -> list[CastVote]:
        """Return the votes that count, of one user or of all, in the order in which they were given."""
        return self._votes(user)

    def _votes(self, user: str | None = None, question: str | None = None) -> list[CastVote]:
        votes = []
        for name, answer, ranks, reasons, second_answer, at, second_question in self._file.rows(sql.VOTES, user, question):
            numbers, words = (tuple(json.loads(text)) for text in (ranks, reasons))
            votes.append(CastVote(name, answer, numbers, words, second_answer, at, second_question))
        return votes

    def decided(self, user: str | None = None) -> list[tuple[ShownPicture, ShownPicture]]:
        """Return the preferred and the other picture of every comparison that a user, or anybody, decided."""
        pairs = [(row[0], self._picture(*row[1:5]), self._picture(*row[5:9])) for row in self._file.rows(sql.DECIDED, user)]
        return [(left, right) if answer == "left" else (right, left) for answer, left, right in pairs]

    def compared(self, prompt: str) -> list[Compared]:
        """Return two pictures' files, and how the first fared, of every comparison of a prompt's pictures that a vote decided, or tied.

        A ranking is a comparison of each picture with every other one. A skipped comparison counts as a tie, for it is not asked again.
        """
        return compared(self._file.rows(sql.ANSWERED_OF_PROMPT, prompt), self.folder)

    def users(self) -> list[str]:
        """Return the names of all who were asked something."""
        return [name for (name,) in self._file.rows("SELECT name FROM users ORDER BY id")]

    def answers(self, user: str) -> dict[str, int]:
        """Return how many of a user's votes that count have each answer."""
        return dict(self._file.rows(sql.ANSWERED, user))

    def consistency(self, user: str) -> tuple[int, int]:
        """Return how many repeated questions a user answered with the same picture, and how many were decided both times."""
        return self._file.rows(sql.CONSISTENCY, user)[0]

    def records(self) -> Iterator[Record]:
        """Yield a record for every vote that counts and is not skipped: the picture on the left first, ranked if the vote is a ranking."""
        for vote in self.votes():
            if vote.answer != "skip":
                yield self._record(vote)

    def _record(self, vote: CastVote) -> Record:
        question = self.question(vote.question)
        ranks = vote.ranks or (None,) * len(question.pictures)
        candidates = tuple(
            Candidate(image=self._read(picture.file), model=picture.model or None, uid=picture.file.stem, rank=rank)
            for picture, rank in zip(question.pictures, ranks, strict=True)
        )
        meta = {"answer": vote.answer, "reasons": ", ".join(vote.reasons), "second_answer": vote.second_answer}
        meta |= {"second_question": vote.second_question}
        meta |= {"repeats": question.repeats or "", "voted_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(vote.at))}
        return Record(
            question.id,
            question.prompt,
            candidates,
            PROBABILITIES.get(vote.answer),
            user=question.user,
            source=f"{self.path} vote {question.id}",
            meta={name: value for name, value in meta.items() if value},
        )

    def _read(self, file: Path) -> bytes:
        try:
            return file.read_bytes()
        except FileNotFoundError as error:
            raise RecordError(
                f"{self.path}: the picture {file} is gone; copy the folder {self.folder.name} together with the store"
            ) from error
