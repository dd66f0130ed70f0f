"""Owners look through votes and tables, have them audited and correct labels; nobody else does, and nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from diffalign.app.background import Background
from diffalign.app.commands import CLI
from diffalign.app.ledger import Ledger
from diffalign.app.page_route import serve_explanation
from diffalign.app.pages.data import report_of, sheet_of
from diffalign.app.voters import AccessError, Account, Accounts
from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.browse import Filter
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.store import VoteStore
from diffalign.data.table import read_table, write_table

EVERY = Filter()


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    command: Sequence[str]
    trouble: str | None = None
    busy: bool = False
    last_line: str = ""


def pair(name: str, prob: float | None, **facts) -> Record:
    candidates = tuple(Candidate(image=encode_image(Image.new("L", (8, 8), shade)), model=f"<i>sd{shade}</i>") for shade in (10, 90))
    return Record(name, f"a <b>star</b> {name}", candidates, prob=prob, **facts)


@pytest.fixture
def ledger(tmp_path):
    write_table(tmp_path / "tables" / "pairs", [pair("one", 1.0, user="ada"), pair("two", 0.0), pair("three", 0.5)])
    write_table(tmp_path / "elsewhere", [pair("secret", 1.0)])
    with VoteStore(tmp_path / "votes.db") as store:
        images = [encode_image(Image.new("L", (300, 200), shade)) for shade in (0, 80, 160)]
        store.add_pictures("a <b>star</b>", images, model="<i>sd</i>")
        for answer in ("left", "tie", "right"):
            (question,) = store.questions("bob")
            store.vote(question.id, "bob", answer, reasons=["colour"])
        accounts = Accounts({"ada": Account("long enough", "owner"), "bob": Account("long enough", "voter")})
        background = Background(tmp_path / "data" / "audit.log")
        yield Ledger({"votes": store}, [tmp_path / "tables"], tmp_path / "data", accounts, background)
        background.stop()


def ids(ledger: Ledger, name: str, wanted: Filter = EVERY, number: int = 1, rows: int = 12) -> list[str]:
    return [entry.id for entry in ledger.sheet("ada", name, wanted, number, rows)[0]]


def test_votes_are_found_the_newest_first_and_come_in_sheets(ledger):
    entries, total = ledger.sheet("ada", "votes", EVERY, 1, 2)
    assert ([entry.label for entry in entries], total) == (["right", "tie"], 3)
    assert [entry.label for entry in ledger.sheet("ada", "votes", EVERY, 2, 2)[0]] == ["left"]
    assert [entry.label for entry in ledger.sheet("ada", "votes", Filter(user="bob", label="tie"), 1, 2)[0]] == ["tie"]
    assert ledger.users("ada", "votes") == ["bob"]


def test_a_corrected_vote_counts_and_a_removed_one_does_not(ledger):
    newest = ids(ledger, "votes")[0]
    ledger.correct("ada", "votes", newest, "tie")
    assert ledger.sheet("ada", "votes", EVERY, 1, 1)[0][0].label == "tie"
    ledger.correct("ada", "votes", newest, None)
    assert newest not in ids(ledger, "votes")
    for label in ("left", None):
        with pytest.raises(RecordError):
            ledger.correct("ada", "votes", "0" * 32, label)


def test_a_table_keeps_its_rows_and_its_corrections_stand_beside_it(ledger):
    before = read_table(ledger.path("ada", "pairs")).fingerprint
    ledger.correct("ada", "pairs", "one", "right")
    ledger.correct("ada", "pairs", "two", None)
    assert ledger.corrected("ada", "pairs") == {"one": "right", "two": None}
    assert read_table(ledger.path("ada", "pairs")).fingerprint == before
    with pytest.raises(RecordError, match="seven"):
        ledger.correct("ada", "pairs", "seven", "left")


def test_tables_outside_the_folders_have_no_name(ledger, tmp_path):
    assert ledger.names("ada") == ["votes", "pairs"]
    (tmp_path / "tables" / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("../elsewhere", str(tmp_path / "elsewhere"), "link", ".", "", "pairs/../../elsewhere", "\0"):
        with pytest.raises(ConfigError) as refused:
            ledger.path("ada", name)
        assert str(tmp_path) not in str(refused.value).replace(repr(name), "")


def test_voters_and_strangers_see_and_correct_nothing(ledger):
    newest = ids(ledger, "votes")[0]
    calls = {
        "names": (),
        "path": ("votes",),
        "rows": ("votes",),
        "users": ("votes",),
        "sheet": ("votes", EVERY, 1, 12),
        "corrections": ("pairs",),
        "correct": ("votes", newest, None),
        "start": ("votes", "validate"),
    }
    for login in ("bob", "eve", None):
        for name, values in calls.items():
            with pytest.raises(AccessError):
                getattr(ledger, name)(login, *values)
    assert len(ledger.stores["votes"].votes()) == 3


def test_a_sheet_shows_small_pictures_and_no_html_of_prompts_or_models(ledger):
    ledger.correct("ada", "pairs", "one", "right")
    for name in ("votes", "pairs"):
        entries, total = ledger.sheet("ada", name, EVERY, 1, 12)
        page = sheet_of(ledger, "ada", name, entries, 0, total)
        assert page.count("data:image/webp") == 6
        assert "<b>star" not in page
        assert "<i>sd" not in page
        assert str(ledger.workplace.parent) not in page
    assert "corrected to right" in page


def test_an_audit_runs_beside_the_page_and_shows_what_the_command_line_prints(ledger):
    ledger.start("ada", "pairs", "validate")
    with pytest.raises(ConfigError):
        ledger.start("ada", "pairs", "validate")
    ledger.command.process.wait(60)
    page = report_of(ledger)
    assert "3 rows, 0 problems" in page
    assert "diffalign data validate --dataset_name" in page
    assert str(ledger.workplace.parent) not in page
    with pytest.raises(ConfigError, match="rm"):
        ledger.start("ada", "pairs", "rm")
    with pytest.raises(ConfigError):
        ledger.start("ada", "votes", "correct")


def test_what_votes_reward_is_a_page_that_owners_open_and_nobody_else(ledger):
    explained = replace(ledger, command=Ended([*CLI, "data", "explain"]))
    assert "href" not in report_of(explained)  # there is no page yet
    ledger.explanation.parent.mkdir(parents=True)
    ledger.explanation.write_text("<p>Bright pictures win.</p>")
    ledger.report.write_text("* brightness +1.20")
    assert '<a href="explanation"' in report_of(explained)
    assert "href" not in report_of(replace(ledger, command=Ended([*CLI, "data", "validate"])))
    assert "href" not in report_of(replace(ledger, command=Ended([*CLI, "data", "explain"], trouble="it ended with 2")))
    server: Any = FastAPI()
    server.cookie_id, server.tokens = "1", {"a": "ada", "b": "bob"}
    serve_explanation(server, ledger)
    answers = [TestClient(server, cookies={"access-token-1": token}).get("/explanation") for token in ("a", "b", "c")]
    assert [answer.status_code for answer in answers] == [200, 404, 404]
    assert answers[0].text == "<p>Bright pictures win.</p>"
