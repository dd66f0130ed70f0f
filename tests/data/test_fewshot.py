"""Other votes of the same person in front of a prompt: whose they are, that none is the record's own, and who has too few."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from diffalign.core.errors import ConfigError, RecordError, TableError
from diffalign.data.fewshot import written
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.table import write_table
from diffalign.data.transforms import fewshot_context
from tests.data.test_open_dataset import config, opened


def vote(user: str, number: int, prob: float = 1.0, *, prompt: str | None = None, **more) -> Record:
    """Return a vote of a person, who prefers "+" to "-"."""
    one, other = Candidate(text=f"{user}{number}+"), Candidate(text=f"{user}{number}-")
    answers = (one, other) if prob > 0.5 else (other, one)
    return Record(f"{user}-{number}", prompt or f"ask {user}{number}", answers, prob, user, f"row {number}", **more)


def shown(view) -> dict[str, list[str]]:
    """Return the preferred answers in front of each record's prompt, by its id."""
    marks = [[line.removeprefix("Preferred: ") for line in record.prompt.splitlines() if line.startswith("Preferred: ")] for record in view]
    return dict(zip([record.id for record in view], marks, strict=True))


def made(folder, records, **constants):
    table = write_table(folder / "table", records)
    return opened(config(table.path, method="dpo", transforms=["pairs", "drop_ties", "orient", {"fewshot_context": constants}]))


def test_votes_are_of_the_same_person_under_other_prompts_and_never_the_record_itself(tmp_path):
    votes = [vote("ann", n, n % 2) for n in range(6)] + [vote("bob", n) for n in range(4)]
    votes += [replace(vote("ann", 6, prompt="ask ann0")), vote("ann", 7, 0.5)]  # a prompt again, and a tie
    view = made(tmp_path, votes, shots=3)
    contexts = shown(view)
    assert len(contexts) == 11
    for record in view:
        name, number = record.id.split("-")
        assert len(set(contexts[record.id])) == 3
        assert all(answer.startswith(name) and answer.endswith("+") for answer in contexts[record.id])
        same = {"0", "6"} if name == "ann" and number in "06" else {number}  # those under this prompt
        assert not same & {answer[3:-1] for answer in contexts[record.id]}
        assert record.prompt.endswith(f"\n\nask {name}{'0' if number == '6' else number}")
        assert record.candidates[0].text == f"{name}{number}+"


def test_the_seed_and_the_record_alone_say_which_votes_and_in_which_order(tmp_path):
    votes = [vote("ann", n) for n in range(12)]
    first, again, other = (
        shown(made(tmp_path / name, records, shots=4, seed=seed))
        for name, records, seed in (("a", votes, 0), ("b", votes, 0), ("c", votes, 1))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)
    assert len({tuple(own) for own in first.values()}) == 12
    assert any(own != sorted(own) for own in first.values())


def test_who_has_too_few_votes_is_left_out_and_named(tmp_path, caplog):
    votes = [vote("ann", n) for n in range(3)] + [vote("bob", n) for n in range(2)] + [replace(vote("cat", 0), user=None)]
    with caplog.at_level(logging.INFO):
        view = made(tmp_path, votes, shots=2)
    assert [record.user for record in view] == ["ann"] * 3
    assert "1 of 2 users have too few votes for 2 in front of a prompt: bob" in caplog.text
    assert view.usage.dropped["left out by `fewshot_context`"] == 3
    with pytest.raises(TableError, match=r"none of 2 users has 5 labelled pairs under other prompts.*user_id"):
        made(tmp_path / "few", votes, shots=5)


def test_in_a_conversation_they_are_a_system_message(tmp_path):
    votes = [vote("ann", n, messages=(Message("user", f"ask ann{n}"),)) for n in range(2)]
    record = made(tmp_path, votes, shots=1)[0]
    assert [message.role for message in record.messages] == ["system", "user"]
    assert record.messages[0].content == written([("ask ann1", "ann1+", "ann1-")])
    assert record.prompt == "ask ann0"


def test_pictures_and_what_cannot_be_meant_are_refused(tmp_path, pairs_file):
    with pytest.raises(TableError, match=r"`fewshot_context` writes answers into prompts, and these are images.*ppd"):
        opened(config(pairs_file, method="diffusion_dpo", transforms=["fewshot_context"], output_dir=str(tmp_path)))
    for constants, message in (
        ({"shots": 0}, "shots is 0"),
        ({"template": "{prompt}"}, "{preferred}"),
        ({"template": '{"for": {prompt}, "good": {preferred}, "bad": {dispreferred}}'}, "other braces to be doubled"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(tmp_path / message, [vote("ann", 0), vote("ann", 1)], **constants)
    own = Record("r", "p", (Candidate(text="a", prompt="q"), Candidate(text="b")), 1.0, "ann")
    with pytest.raises(RecordError, match="prompts of their own"):
        fewshot_context(own)
