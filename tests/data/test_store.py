"""A vote store gives exactly the votes that were meant, whatever the voters, their browsers and the machine do."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading

import pytest
from PIL import Image

from diffalign.core.errors import RecordError, TableError
from diffalign.data.importing import import_dataset
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from diffalign.data.store_schema import MIGRATIONS


def picture(shade: int) -> bytes:
    return encode_image(Image.new("L", (8, 8), shade))


@pytest.fixture
def store(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pictures("a star", [picture(shade) for shade in (10, 20, 30)], model="tiny-sd", seeds=[0, 1, 2])
        yield store


def ask(store, user="ada", **options):
    (question,) = store.questions(user, **options)
    return question


def test_a_vote_becomes_a_record_with_the_left_picture_first(store):
    question = ask(store)
    store.vote(question.id, "ada", "right", reasons=["colour", "anatomy"])
    (record,) = store.records()
    assert [candidate.image for candidate in record.candidates] == [picture.file.read_bytes() for picture in question.pictures]
    assert (record.prompt, record.prob, record.user, record.meta["reasons"]) == ("a star", 0.0, "ada", "colour, anatomy")
    assert {candidate.model for candidate in record.candidates} == {"tiny-sd"}


def test_each_answer_has_its_probability_and_a_skip_none(store):
    for answer in ("left", "tie", "skip"):
        store.vote(ask(store).id, "ada", answer)
    store.vote(ask(store, "bob").id, "bob", "both_bad")
    assert [(record.prob, record.meta["answer"]) for record in store.records()] == [(1.0, "left"), (0.5, "tie"), (0.5, "both_bad")]


def test_of_all_answers_to_a_question_the_first_counts(store):
    question = ask(store)
    assert store.vote(question.id, "ada", "left").answer == "left"
    assert store.vote(question.id, "ada", "right").answer == "left"
    assert len(store.votes()) == 1


def test_a_question_comes_back_until_it_is_answered(store):
    question = ask(store)
    assert ask(store) == question
    assert store.questions("ada", 2)[0] == question
    with VoteStore(store.path) as again:  # as after a restart
        assert ask(again) == question


def test_a_user_sees_each_pair_once_and_then_none(store):
    seen = set()
    for _ in range(3):
        question = ask(store)
        seen.add(frozenset(picture.id for picture in question.pictures))
        store.vote(question.id, "ada", "left")
    assert len(seen) == 3
    assert store.questions("ada") == []
    assert len(store.questions("bob", 5)) == 3


def test_pairs_are_spread_over_prompts_and_over_users(store):
    store.add_pictures("a moon", [picture(shade) for shade in (40, 50, 60)])
    prompts = []
    for _ in range(4):
        question = ask(store)
        prompts.append(question.prompt)
        store.vote(question.id, "ada", "tie")
    assert sorted(prompts) == ["a moon", "a moon", "a star", "a star"]
    by_ada = {frozenset(picture.id for picture in store.question(vote.question).pictures) for vote in store.votes()}
    assert frozenset(picture.id for picture in ask(store, "bob").pictures) not in by_ada


def test_both_pictures_of_a_pair_stand_on_the_left_about_as_often(store):
    rng = random.Random(0)
    first = [ask(store, f"user {n}", rng=rng, choose=lambda pairs: min(range(len(pairs)), key=lambda i: pairs[i].id)) for n in range(40)]
    assert 10 <= sum(question.pictures[0].seed == 0 for question in first) <= 30


def test_a_chooser_decides_which_open_pair_comes_next(store):
    question = ask(store, choose=lambda pairs: next(i for i, pair in enumerate(pairs) if {pair.first.seed, pair.second.seed} == {1, 2}))
    assert {picture.seed for picture in question.pictures} == {1, 2}


def test_undo_asks_again_and_keeps_the_history(store):
    first = ask(store)
    store.vote(first.id, "ada", "left")
    ask(store)
    assert store.undo("ada") == first
    assert ask(store) == first
    store.vote(first.id, "ada", "right")
    assert [vote.answer for vote in store.votes()] == ["right"]
    with sqlite3.connect(store.path) as database:
        assert database.execute("SELECT answer, withdrawn IS NULL FROM votes ORDER BY id").fetchall() == [("left", 0), ("right", 1)]
    assert store.undo("bob") is None


def test_an_owner_corrects_or_removes_a_label_and_the_voters_answer_is_kept(store):
    question = ask(store)
    store.vote(question.id, "ada", "left")
    store.correct(question.id, "owner", "right")
    assert [(record.prob, record.user) for record in store.records()] == [(0.0, "ada")]
    store.correct(question.id, "owner", None)
    assert list(store.records()) == []
    with sqlite3.connect(store.path) as database:
        assert database.execute("SELECT COUNT(*) FROM votes").fetchone() == (2,)


def test_a_repeat_shows_the_sides_exchanged_and_measures_consistency(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pictures("a star", [picture(shade) for shade in range(0, 250, 50)])
        for _ in range(6):
            store.vote(ask(store).id, "ada", "left")
        question = ask(store, repeats=1.0)
        earlier = store.question(question.repeats)
        assert [picture.id for picture in question.pictures] == [picture.id for picture in reversed(earlier.pictures)]
        store.vote(question.id, "ada", "right")  # the same picture as before
        assert store.consistency("ada") == (1, 1)
        assert len(list(store.records())) == 7


def test_repeats_keep_to_their_share_also_of_a_voter_who_waits_for_new_pictures(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pictures("a star", [picture(shade) for shade in range(0, 250, 50)])  # ten pairs
        for _ in range(10):
            store.vote(ask(store).id, "ada", "left")
        for _ in range(100):  # looks for new pictures, of which there are none
            for question in store.questions("ada", repeats=0.2):
                store.vote(question.id, "ada", "left")
        assert [vote.question for vote in store.votes() if store.question(vote.question).repeats] == [
            vote.question for vote in store.votes()[10:12]
        ]


def test_an_answer_must_fit_its_question_and_its_user(store):
    question = ask(store)
    for user, answer, ranks, word in (
        ("bob", "left", (), "bob"),
        ("ada", "both", (), "both_bad"),
        ("ada", "ranking", (1,), "ranks"),
        ("ada", "ranking", (1, 3), "ranks"),
        ("ada", "left", (1, 2), "ranking"),
    ):
        with pytest.raises(RecordError, match=word):
            store.vote(question.id, user, answer, ranks=ranks)
    with pytest.raises(RecordError, match="no question"):
        store.vote("0" * 32, "ada", "left")
    assert store.votes() == []


def test_a_broken_picture_is_refused_and_nothing_of_its_prompt_is_added(store):
    with pytest.raises(RecordError, match="picture 1 of 'a moon'"):
        store.add_pictures("a moon", [picture(1), b"<html>"])
    assert ask(store).prompt == "a star"
    assert store.add_pictures("a star", [picture(10)], model="tiny-sd", seeds=[0]) == 0  # it is there already


def test_twenty_threads_and_a_second_process_object_lose_and_double_nothing(store):
    store.add_pictures("a moon", [picture(shade) for shade in range(100, 240, 20)])
    other = VoteStore(store.path)
    failures = []

    def vote_all(user: str, through: VoteStore) -> None:
        try:
            while questions := through.questions(user, 2):
                for _ in range(2):
                    through.vote(questions[0].id, user, "left")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=vote_all, args=(f"user {n}", (store, other)[n % 2])) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert failures == []
    assert len(store.votes()) == 20 * (3 + 21)


def test_the_store_is_a_dataset_like_any_other(store, tmp_path):
    for answer in ("left", "right", "tie"):
        store.vote(ask(store).id, "ada", answer)
    table = import_dataset(str(store.path), tmp_path / "table")
    assert (table.manifest["reader"], table.manifest["rows"], table.manifest["ties"]) == ("votes", 3, 1)
    assert [record.prob for record in table] == [1.0, 0.0, 0.5]


def test_a_dataset_becomes_pairs_to_vote_on_without_its_labels(store, tmp_path):
    store.vote(ask(store).id, "ada", "left")
    with VoteStore(tmp_path / "other.db") as other:
        assert other.add_records(store.records()) == 2
        assert ask(other).prompt == "a star"
        assert other.votes() == []


def test_files_that_are_no_vote_store_are_refused_and_left_alone(tmp_path):
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one, which it is not" * 20)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE people (name TEXT)")
    with sqlite3.connect(tmp_path / "newer.db") as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for name, word in (("text.db", "no vote store"), ("other.db", "people"), ("newer.db", "version")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(TableError, match=word):
            VoteStore(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(TableError, match="no such"):
        VoteStore(tmp_path / "missing.db", read_only=True)


VOTER = """
import sys
from diffalign.data.store import VoteStore
store = VoteStore(sys.argv[1])
while questions := store.questions("ada"):
    store.vote(questions[0].id, "ada", "left")
    print(questions[0].id, flush=True)
"""


def test_no_confirmed_vote_is_lost_when_the_process_is_killed(tmp_path):
    path = tmp_path / "votes.db"
    with VoteStore(path) as store:
        store.add_pictures("a star", [picture(shade) for shade in range(40)])
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", VOTER, str(path)], stdout=subprocess.PIPE, text=True) as voter:
            confirmed = [voter.stdout.readline().strip() for _ in range(5)]
            voter.kill()
            confirmed += voter.stdout.read().split()
        with VoteStore(path) as store:
            voted = [vote.question for vote in store.votes()]
        assert set(confirmed) <= set(voted)
        assert len(voted) == len(set(voted))


def test_a_vote_is_confirmed_only_once_the_disk_has_it(store, monkeypatch):
    question = ask(store)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.vote(question.id, "ada", "left")


def full_disk(number: int) -> None:
    raise OSError("no space left on the device")


def test_a_store_of_the_first_version_is_read_as_it_is_and_written_as_a_newer_one(tmp_path):
    path = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in MIGRATIONS[0]:
            database.execute(statement)
        database.execute("PRAGMA user_version = 1")
        for statement in (
            "INSERT INTO users VALUES (1, 'ada', 0)",
            "INSERT INTO prompts VALUES (1, 'a star')",
            "INSERT INTO shown VALUES ('q', 1, 1, NULL, NULL, 0)",
            "INSERT INTO votes VALUES (1, 'q', 1, 'left', '[]', '[]', '', 0, NULL)",
        ):
            database.execute(statement)
    before = path.read_bytes()
    with VoteStore(path, read_only=True) as store:
        assert [vote.answer for vote in store.votes()] == ["left"]
    assert path.read_bytes() == before
    with VoteStore(path) as store:
        assert [(vote.answer, vote.second_question) for vote in store.votes()] == [("left", "")]
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_four_pictures_are_ranked_once_and_become_a_ranked_record(store):
    assert store.questions("ada", ranking=True) == []  # three pictures are too few
    store.add_pictures("a star", [picture(shade) for shade in range(100, 160, 10)], model="tiny-sd")
    first, second = (store.questions("ada", 1, ranking=True)[0] for _ in range(2))
    assert first == second  # until it is answered
    assert len({shown.file for shown in first.pictures}) == 4
    store.vote(first.id, "ada", "ranking", ranks=[2, 1, 4, 3])
    (other,) = store.questions("ada", 3, ranking=True)  # of nine pictures, five were left
    assert not {shown.id for shown in first.pictures} & {shown.id for shown in other.pictures}
    (record,) = store.records()
    assert ([candidate.rank for candidate in record.candidates], record.prob) == ([2, 1, 4, 3], None)
    assert ask(store).id not in (first.id, other.id)  # who ranks and who compares is asked different things
    assert store.undo("ada") is None
    assert store.undo("ada", ranking=True) == first


def test_a_second_answer_is_kept_with_its_question(store):
    question = ask(store)
    with pytest.raises(RecordError, match="second"):
        store.vote(question.id, "ada", "left", second_answer="both_bad")
    store.vote(question.id, "ada", "left", second_question="Which is sharper?", second_answer="right")
    (record,) = store.records()
    assert (record.prob, record.meta["second_question"], record.meta["second_answer"]) == (1.0, "Which is sharper?", "right")
