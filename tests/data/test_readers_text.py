"""The readers of text datasets: what each makes of its fixture, and the quirks of the formats."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from statistics import mode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.data.readers import READERS, read
from diffalign.data.readers.detect import detect
from diffalign.data.records import Message
from diffalign.data.table import write_table
from tests.data.text_files import FIXTURES, NINE, PRIME, READER_OF, SEVEN, fixture, one, raw, records, texts, turns

every_fixture = pytest.mark.parametrize("name", READER_OF)


def test_every_fixture_has_a_test_and_every_text_reader_a_fixture() -> None:
    assert {path.name for path in FIXTURES.iterdir()} == {*READER_OF, "SOURCES.md"}
    assert set(READER_OF.values()) <= set(READERS)


@every_fixture
def test_the_first_row_tells_the_layout(name: str) -> None:
    assert detect(str(FIXTURES / name)) == READER_OF[name]


@every_fixture
def test_records_survive_a_table_in_the_order_of_the_file(name: str, tmp_path: Path) -> None:
    found = fixture(name)
    rows = [int(record.id.removeprefix(f"{name}:")) for record in found]
    assert rows == sorted(set(rows))
    assert [record.source for record in found] == [f"{FIXTURES / name} row {row}" for row in rows]
    assert list(write_table(tmp_path / "table", found)) == found


def test_trl_reads_an_explicit_prompt_as_it_stands() -> None:
    (record,) = fixture("trl.jsonl")
    assert (record.prompt, texts(record), record.prob, record.messages) == ("The sky is", [" blue.", " green."], 1.0, ())


def test_trl_takes_the_common_beginning_as_prompt_and_leaves_the_space_to_the_answers() -> None:
    (record,) = fixture("trl_implicit.jsonl")
    assert (record.prompt, texts(record), record.prob) == ("The sky is", [" blue.", " green."], 1.0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),  # parts within a word
        ("Answer: 12", "Answer: 120", "Answer:"),  # one is the beginning of the other
        ("Q: 2+2?\nA:\nfour", "Q: 2+2?\nA:\nfive", "Q: 2+2?\nA:\n"),  # a newline stays with the prompt
        ("天空是蓝色", "天空是绿色", "天空是"),  # a script without spaces is cut where the texts part
    ],
)
def test_an_implicit_prompt_never_cuts_a_word(chosen: str, rejected: str, prompt: str, tmp_path: Path) -> None:
    record = one("trl", tmp_path, {"chosen": chosen, "rejected": rejected})
    assert record.prompt == prompt
    assert [prompt + (text or "") for text in texts(record)] == [chosen, rejected]


def test_trl_keeps_every_turn_of_an_explicit_conversation_and_names_the_last_one_prompt() -> None:
    (record,) = fixture("trl_messages.jsonl")
    assert turns(record) == [
        ("system", "You are terse."),
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", "What colour is the sky?"),
    ]
    assert (record.prompt, texts(record), record.prob) == ("What colour is the sky?", ["Blue.", "Green."], 1.0)


def test_trl_takes_the_common_messages_as_prompt() -> None:
    (record,) = fixture("trl_messages_implicit.jsonl")
    assert turns(record) == [("user", "What colour is the sky?")]
    assert (record.prompt, texts(record)) == ("What colour is the sky?", ["Blue.", "Green."])


@pytest.mark.parametrize("before", [[], [PRIME]], ids=["answers alone", "prompt repeated"])
def test_trl_reads_a_text_prompt_beside_message_lists(before: list[dict[str, str]], tmp_path: Path) -> None:
    record = one("trl", tmp_path, {"prompt": "Name a prime.", "chosen": [*before, SEVEN], "rejected": [*before, NINE]})
    assert (record.prompt, turns(record), texts(record)) == ("Name a prime.", [("user", "Name a prime.")], ["7", "9"])


def test_equal_answers_are_answers_and_no_part_of_the_prompt(tmp_path: Path) -> None:
    record = one("trl", tmp_path, {"chosen": [PRIME, SEVEN], "rejected": [PRIME, SEVEN]})
    assert (record.prompt, texts(record)) == ("Name a prime.", ["7", "7"])


def test_message_lists_are_read_from_parquet(tmp_path: Path) -> None:
    rows = raw("trl_messages.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (record,), (expected,) = records("trl", tmp_path / "rows.parquet"), fixture("trl_messages.jsonl")
    assert (record.messages, record.candidates) == (expected.messages, expected.candidates)


def test_ultrafeedback_keeps_both_ratings_and_stays_strict_where_they_are_equal() -> None:
    first, equal = fixture("ultrafeedback.jsonl")
    assert (first.prompt, texts(first), first.messages) == ("Name a prime.", ["7", "9"], (Message("user", "Name a prime."),))
    assert [candidate.scores for candidate in first.candidates] == [{"rating": 8.5}, {"rating": 3.0}]
    assert (first.prob, first.meta) == (1.0, {"prompt_id": "f0e37e9f"})
    assert (texts(equal), equal.prob) == (["Hello.", "Hello."], 1.0)
    assert [candidate.scores["rating"] for candidate in equal.candidates] == [7.0, 7.0]


def test_hh_rlhf_parts_the_dialogue_at_the_last_common_assistant() -> None:
    single, several = fixture("hh_rlhf.jsonl")
    assert (single.prompt, single.prob) == ("How do I boil an egg?", 1.0)
    assert texts(single) == ["Put it in boiling water.\n\nFor eight minutes.", "Put it in a pan."]
    assert turns(several) == [("user", "Hi."), ("assistant", "Hello!"), ("user", "Name a tree.")]
    assert (several.prompt, texts(several)) == ("Name a tree.", ["Oak.", "A fish."])


def test_helpsteer2_joins_two_rated_rows_in_their_order() -> None:
    better, worse, tied = fixture("helpsteer2.jsonl")
    assert (better.prompt, texts(better), better.prob, better.id) == ("Add 2 and 3.", ["5", "6"], 1.0, "helpsteer2.jsonl:0")
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    assert [candidate.scores for candidate in better.candidates] == [
        dict(zip(names, (4, 4, 4, 1, 0), strict=True)),
        dict(zip(names, (1, 0, 4, 1, 1), strict=True)),
    ]
    assert (texts(worse), worse.prob) == (["Fish.", "Elm."], 0.0)
    assert turns(worse) == [("user", "Name a tree."), ("assistant", "Oak."), ("user", "And one more?")]
    assert (tied.prob, tied.id) == (0.5, "helpsteer2.jsonl:4")


def test_helpsteer2_reads_a_negative_strength_as_response_1_better() -> None:
    found = fixture("helpsteer2_preference.jsonl")
    assert [record.prob for record in found] == [1.0, 0.0, 0.5]
    assert [texts(record) for record in found] == [["5", "6"], ["Fish.", "Elm."], ["Hello.", "Hi there."]]
    assert [record.meta["preference_strength"] for record in found] == ["-3", "1", "0"]
    assert [record.meta["split"] for record in found] == ["train", "val", "val"]
    assert found[1].prompt == "And one more?"


def test_a_gzipped_file_reads_like_the_plain_one(tmp_path: Path) -> None:
    name = "helpsteer2_preference.jsonl"
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress((FIXTURES / name).read_bytes()))
    (tmp_path / "validation.jsonl.gz").write_bytes(b"")
    for source, split in ((packed, None), (tmp_path, "train")):
        found = list(read(READERS["helpsteer2"], str(source), split=split))
        assert [texts(record) for record in found] == [texts(record) for record in fixture(name)]


def test_pandalm_takes_the_mean_vote_and_keeps_each_one() -> None:
    first, second, tie, split, _ = fixture("pandalm.json")
    assert (first.prompt, texts(first)) == ("Write down antonyms for the given word.\n\nlaureating", ["Dishonoring", "dismissing"])
    assert second.prompt == "Suggest some names for a friendly group in telegram."  # its input is empty
    assert texts(tie)[1] == ""
    assert [record.prob for record in (first, second, tie)] == [1.0, 0.0, 0.5]
    assert split.prob == pytest.approx((1 + 0.5 + 1) / 3)
    assert split.meta == {"annotator1": "1", "annotator2": "0", "annotator3": "1"}


def test_pandalm_reads_a_response_that_lost_its_quotes_as_text() -> None:
    assert texts(fixture("pandalm.json")[-1]) == ["True", "The statement is correct."]


def test_pandalm_votes_have_the_published_majorities() -> None:
    found = fixture("pandalm_votes.csv")
    assert Counter(mode(record.meta.values()) for record in found) == {"0": 105, "1": 422, "2": 472}
    assert sum(record.prob not in (0.0, 0.5, 1.0) for record in found) == 120  # rows on which one annotator differs


def test_llamafactory_reads_sharegpt_with_system_and_several_turns() -> None:
    single, system, several = fixture("llamafactory_sharegpt.json")
    assert turns(single) == [("user", single.prompt)]
    assert single.prompt == "Obtain the result by calculating 6778576-84834150134. Only respond with math and no words."
    assert texts(single) == ["6778576 - 84834150134 = -84827371558", "84834150134 - 6778576 = -16666579378"]
    assert [role for role, _ in turns(system)] == ["system", "user"]
    assert (system.prompt, system.prob) == ("Write a sentence not in English.", 1.0)
    assert [role for role, _ in turns(several)] == ["user", "assistant", "user", "assistant", "user"]
    assert several.prompt == "Can you elaborate on why it's logically impossible to overtake the last runner in a race?"


def test_llamafactory_v1_keeps_romanian_letters_and_leading_spaces() -> None:
    romanian, emoji = fixture("llamafactory_v1.jsonl")
    assert romanian.prompt.startswith("Abdulah Hasanagic este mândrul proprietar al AS Company din Gorazde, un orăşel situat")
    assert [role for role, _ in turns(romanian)] == ["system", "user"]
    chosen, rejected = texts(romanian)
    assert chosen is not None
    assert rejected is not None
    assert chosen.startswith("Abdulah Hasanagic is the proud owner of AS Company in Gorazde,")
    assert rejected.startswith(" Abdulah Hasanagic is the proud owner of AS Company, a small town")
    assert (emoji.prob, "🐰💕🐱" in (texts(emoji)[1] or "")) == (1.0, True)


def test_llamafactory_reads_alpaca_rankings_with_input_system_and_history() -> None:
    plain, chat = fixture("llamafactory_alpaca.json")
    assert (plain.prompt, texts(plain), plain.prob, plain.messages) == ("Add the numbers.\n2 and 3", ["5", "6"], 1.0, ())
    assert turns(chat) == [
        ("system", "You are terse."),
        ("user", "Add 2 and 3."),
        ("assistant", "5"),
        ("user", "And twice that?"),
    ]
    assert (chat.prompt, texts(chat)) == ("And twice that?", ["10", "12"])


def test_llamafactory_keeps_an_unpaired_row_as_one_candidate_with_its_label() -> None:
    good, bad, several = fixture("llamafactory_kto.json")
    assert (good.prompt, texts(good)) == (
        "What is the result of 660-549695? Only respond with math and no words.",
        ["660 - 549695 = -549035"],
    )
    assert [record.meta for record in (good, bad, several)] == [{"label": "true"}, {"label": "false"}, {"label": "true"}]
    assert [record.prob for record in (good, bad, several)] == [1.0, 0.0, 1.0]
    assert [role for role, _ in turns(several)] == ["user", "assistant", "user", "assistant", "user"]


def test_llmbar_names_the_better_output_by_its_number() -> None:
    first, second = fixture("llmbar.json")
    assert (first.prompt, texts(first), first.prob) == ("Find the 3rd prime number", ["5", "2, 3, 5"], 1.0)
    assert (texts(second)[1], second.prob) == ("unconvincing", 0.0)
