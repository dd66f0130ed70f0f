"""What the vote page may ask of the server, and what it may not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from PIL import Image

from diffalign.app import limits
from diffalign.app.ballot import AHEAD, Ballot
from diffalign.app.voters import AccessError, Accounts
from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore

SECRET = "0123456789abcdef" * 2


def picture(shade: int) -> bytes:
    return encode_image(Image.new("L", (8, 8), shade))


@pytest.fixture
def ballot(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pictures("a <b>star</b>", [picture(shade) for shade in (10, 20, 30, 40)], model="secret-model", seeds=[0, 1, 2, 3])
        yield Ballot(store)


def test_a_page_holds_the_next_questions_and_learns_what_drew_them_only_by_voting(ballot):
    state = ballot.state("ada")
    assert len({question["id"] for question in state["questions"]}) == AHEAD
    assert "secret-model" not in json.dumps(state)
    assert str(ballot.store.path.parent) not in json.dumps(state)
    after = ballot.vote("ada", state["questions"][0]["id"], "left", ["colour"])
    assert after["last"] == {"answer": "left", "models": ["secret-model", "secret-model"]}
    assert [question["id"] for question in after["questions"]][:2] == [question["id"] for question in state["questions"]][1:]
    assert after["progress"]["votes"] == 1


def test_undo_brings_the_question_back(ballot):
    first = ballot.state("ada")["questions"][0]
    ballot.vote("ada", first["id"], "tie", [])
    state = ballot.undo("ada")
    assert (state["questions"][0], state["progress"]["votes"], state["undone"]) == (first, 0, True)
    assert ballot.undo("ada")["undone"] is False


def test_pictures_are_named_by_their_content(ballot):
    for question in ballot.state("ada")["questions"]:
        for name in question["pictures"]:
            content = (ballot.store.folder / name[:2] / name).read_bytes()
            assert name == f"{hashlib.sha256(content).hexdigest()}.png"


def test_nobody_votes_for_somebody_else_or_with_reasons_of_his_own(ballot):
    question = ballot.state("ada")["questions"][0]["id"]
    for voter, reasons in (("bob", []), ("ada", ["<script>"])):
        with pytest.raises(RecordError):
            ballot.vote(voter, question, "left", reasons)
    assert ballot.store.votes() == []


def test_votes_faster_than_a_hand_are_refused(ballot, monkeypatch):
    monkeypatch.setattr(limits.time, "monotonic", lambda: 0.0)
    hasty = replace(ballot, pace=limits.Pace(2, 10.0))
    for _ in range(2):
        hasty.vote("ada", hasty.state("ada")["questions"][0]["id"], "left", [])
    with pytest.raises(AccessError):
        hasty.vote("ada", hasty.state("ada")["questions"][0]["id"], "left", [])
    monkeypatch.setattr(limits.time, "monotonic", lambda: 11.0)
    assert hasty.vote("ada", hasty.state("ada")["questions"][0]["id"], "left", [])["progress"]["votes"] == 3


def test_accounts_say_who_may_log_in_and_who_may_train(tmp_path):
    file = tmp_path / "users.json"
    file.write_text(json.dumps({"ada": {"password": "correct horse", "role": "owner"}, "bob": {"password": "battery staple"}}))
    accounts = Accounts.read(file)
    assert accounts.admits("ada", "correct horse")
    assert not any(accounts.admits(*words) for words in (("ada", "battery staple"), ("eve", ""), ("bob", "")))
    assert [accounts.is_owner(name) for name in ("ada", "bob", "eve", None)] == [True, False, False, False]
    assert accounts.voter("bob", SECRET) == "bob"  # a guest's secret counts for nothing where one logs in
    with pytest.raises(AccessError):
        accounts.voter(None, SECRET)
    assert "horse" not in repr(accounts)


def test_without_accounts_a_guest_is_told_by_the_secret_of_the_browser():
    guest = Accounts().voter(None, SECRET)
    assert guest.startswith("guest-")
    assert not any(SECRET[i : i + 6] in guest for i in range(len(SECRET) - 5))  # others see the name, and must not vote with it
    assert guest != Accounts().voter(None, SECRET[::-1])
    for secret in (None, "", "ada", SECRET[:-1], SECRET.upper(), {"a": 1}):
        with pytest.raises(AccessError):
            Accounts().voter(None, secret)


def test_accounts_that_cannot_be_meant_are_refused_by_file_and_user(tmp_path):
    file = tmp_path / "users.json"
    for content, word in (
        ("no json", "cannot be read"),
        ("[]", "no users"),
        ('{"ada": "secret"}', "ada"),
        ('{"ada": {"password": "short"}}', "ada"),
        ('{"ada": {"password": "long enough", "role": "boss"}}', "boss"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=f"users.json.*{word}"):
            Accounts.read(file)


def test_a_ranking_counts_as_its_comparisons_of_neighbours_and_a_further_answer_is_kept(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pictures("a star", [picture(shade) for shade in range(10, 90, 10)])
        ranks, pairs = Ballot(store, ranking=True), Ballot(store, second_question="Which is sharper?")
        question = ranks.state("ada")["questions"][0]
        assert len(question["pictures"]) == 4
        assert ranks.vote("ada", question["id"], "ranking", ranks=[1, 2, 3, 4])["progress"]["votes"] == 3
        state = pairs.state("ada")
        assert state["second_question"] == "Which is sharper?"
        pairs.vote("ada", state["questions"][0]["id"], "left", second_answer="tie")
        assert [(vote.answer, vote.second_question, vote.second_answer) for vote in store.votes()] == [
            ("ranking", "", ""),
            ("left", "Which is sharper?", "tie"),
        ]
