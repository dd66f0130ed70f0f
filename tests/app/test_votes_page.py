"""Owners look through the votes and correct them; nobody else does."""

from __future__ import annotations

import pytest
from PIL import Image

from diffalign.app.pages.votes import ALL, REMOVE, Ledger, sheet_of
from diffalign.app.voters import AccessError, Account, Accounts
from diffalign.core.errors import RecordError
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore


@pytest.fixture
def ledger(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pictures("a <b>star</b>", [encode_image(Image.new("L", (300, 200), shade)) for shade in (0, 80, 160)], model="<i>sd</i>")
        for answer in ("left", "tie", "right"):
            (question,) = store.questions("bob")
            store.vote(question.id, "bob", answer, reasons=["colour"])
        yield Ledger(store, Accounts({"ada": Account("long enough", "owner"), "bob": Account("long enough", "voter")}))


def test_votes_are_found_by_user_and_answer_the_newest_first(ledger):
    assert [vote.answer for vote in ledger.votes("ada", ALL, ALL)] == ["right", "tie", "left"]
    assert [vote.answer for vote in ledger.votes("ada", "bob", "tie")] == ["tie"]
    assert ledger.votes("ada", "eve", ALL) == []


def test_a_correction_counts_and_a_removed_label_does_not(ledger):
    newest = ledger.votes("ada", ALL, ALL)[0].question
    ledger.correct("ada", newest, "tie")
    assert ledger.votes("ada", ALL, ALL)[0].answer == "tie"
    ledger.correct("ada", newest, REMOVE)
    assert [vote.answer for vote in ledger.votes("ada", ALL, ALL)] == ["tie", "left"]
    with pytest.raises(RecordError):
        ledger.correct("ada", "0" * 32, "left")


def test_voters_and_strangers_see_and_correct_nothing(ledger):
    newest = ledger.votes("ada", ALL, ALL)[0].question
    for login in ("bob", "eve", None):
        with pytest.raises(AccessError):
            ledger.votes(login, ALL, ALL)
        with pytest.raises(AccessError):
            ledger.correct(login, newest, REMOVE)
    assert len(ledger.store.votes()) == 3


def test_a_sheet_shows_small_pictures_and_no_html_of_prompts_or_models(ledger):
    page = sheet_of(ledger.store, ledger.votes("ada", ALL, ALL), 3)
    assert page.count("data:image/webp") == 6
    assert "<b>star" not in page
    assert "<i>sd" not in page
    assert str(ledger.store.path.parent) not in page
    assert sheet_of(ledger.store, [], 0)
