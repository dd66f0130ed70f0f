"""The readers of text datasets: what each makes of its fixture, the quirks of the formats, and what they say of bad input."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from statistics import mode
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffalign.data.readers import READERS, read
from diffalign.data.readers.detect import detect
from diffalign.data.records import Message, Record
from diffalign.data.table import write_table
from diffalign.errors import RecordError

FIXTURES = Path(__file__).parent / "fixtures" / "text"
READER_OF = {
    "trl.jsonl": "trl",
    "trl_implicit.jsonl": "trl",
    "trl_messages.jsonl": "trl",
    "trl_messages_implicit.jsonl": "trl",
    "ultrafeedback.jsonl": "ultrafeedback",
    "hh_rlhf.jsonl": "hh_rlhf",
    "helpsteer2.jsonl": "helpsteer2",
    "helpsteer2_preference.jsonl": "helpsteer2",
    "pandalm.json": "pandalm",
    "pandalm_votes.csv": "pandalm",
    "llamafactory_sharegpt.json": "llamafactory",
    "llamafactory_v1.jsonl": "llamafactory",
    "llamafactory_alpaca.json": "llamafactory",
    "llamafactory_kto.json": "llamafactory",
    "llmbar.json": "llmbar",
}
PRIME = {"role": "user", "content": "Name a prime."}
SEVEN = {"role": "assistant", "content": "7"}
NINE = {"role": "assistant", "content": "9"}
every_fixture = pytest.mark.parametrize("name", READER_OF)
every_reader = pytest.mark.parametrize("reader", sorted(set(READER_OF.values())))


def records(reader: str, path: Path) -> list[Record]:
    return list(read(READERS[reader], str(path)))


def fixture(name: str) -> list[Record]:
    return records(READER_OF[name], FIXTURES / name)


def raw(name: str) -> list[dict[str, Any]]:
    text = (FIXTURES / name).read_text(encoding="utf-8")
    if name.endswith(".csv"):
        return list(csv.DictReader(text.splitlines()))
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(reader: str, folder: Path, row: dict[str, Any]) -> Record:
    (record,) = records(reader, jsonl(folder / "one.jsonl", row))
    return record


def texts(record: Record) -> list[str | None]:
    return [candidate.text for candidate in record.candidates]


def turns(record: Record) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


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


def test_a_rated_response_without_its_partner_is_refused_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    first, second, *rest = raw("helpsteer2.jsonl")
    path = jsonl(tmp_path / "odd.jsonl", first, second, first, *rest)
    rejected: list[dict[str, str]] = []
    assert [record.id for record in read(READERS["helpsteer2"], str(path), rejected=rejected)] == [f"odd.jsonl:{i}" for i in (0, 3, 5)]
    (entry,) = rejected
    assert entry["where"] == f"{path} row 2"
    assert "expected two consecutive rows with one prompt" in entry["reason"]


def test_a_gzipped_file_reads_like_the_plain_one(tmp_path: Path) -> None:
    name = "helpsteer2_preference.jsonl"
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress((FIXTURES / name).read_bytes()))
    (tmp_path / "validation.jsonl.gz").write_bytes(b"")
    for source, split in ((packed, None), (tmp_path, "train")):
        found = list(read(READERS["helpsteer2"], str(source), split=split))
        assert [texts(record) for record in found] == [texts(record) for record in fixture(name)]


def test_a_gzipped_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress((FIXTURES / "trl.jsonl").read_bytes())[:-12])
    with pytest.raises(RecordError, match=r"rows\.jsonl\.gz: cannot be read as \.jsonl\.gz"):
        records("trl", packed)


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
    assert [record.prob for record in (good, bad, several)] == [None, None, None]
    assert [role for role, _ in turns(several)] == ["user", "assistant", "user", "assistant", "user"]


def test_llmbar_names_the_better_output_by_its_number() -> None:
    first, second = fixture("llmbar.json")
    assert (first.prompt, texts(first), first.prob) == ("Find the 3rd prime number", ["5", "2, 3, 5"], 1.0)
    assert (texts(second)[1], second.prob) == ("unconvincing", 0.0)


MISSING = object()
BAD_CELLS = [
    ("trl.jsonl", "rejected", MISSING, "no column `rejected`"),
    ("trl.jsonl", "chosen", 3, "column `chosen` is int 3; expected str or list"),
    ("trl.jsonl", "prompt", None, "column `prompt` is NoneType None; expected str"),
    ("trl_implicit.jsonl", "chosen", "Grass is green.", "have no beginning in common; expected a column `prompt`"),
    ("trl_implicit.jsonl", "chosen", "The sky is green.", "are the same text; expected a column `prompt`"),
    ("trl_messages.jsonl", "rejected", "Green.", "column `rejected` is str 'Green.'; expected list"),
    ("trl_messages.jsonl", "chosen", [SEVEN, PRIME, NINE], r"holds 3 message\(s\), assistant \+ user \+ assistant, .* expected one"),
    ("trl_messages.jsonl", "chosen", [], "column `chosen` holds no message .* expected one assistant message"),
    ("trl_messages.jsonl", "chosen", [PRIME], r"holds 1 message\(s\), user, after .* expected one assistant message"),
    ("trl_messages.jsonl", "prompt", [], "conversation before the answers is empty; expected a user or tool turn"),
    ("trl_messages.jsonl", "prompt", [PRIME, SEVEN], "ends in a turn of role assistant; expected a user or tool turn"),
    ("trl_messages.jsonl", "prompt", ["Hi."], "column `prompt` message 0 is str; expected an object"),
    ("trl_messages.jsonl", "prompt", [{**PRIME, "role": "usr"}], "message 0 has role 'usr'; .*mean `user`"),
    ("trl_messages.jsonl", "prompt", [{**PRIME, "content": None}], "has content of type NoneType; expected text"),
    ("trl_messages.jsonl", "prompt", [{**PRIME, "content": [{"type": "image"}]}], "a part of type 'image'; expected text parts"),
    ("trl_messages_implicit.jsonl", "rejected", [PRIME, NINE], r"holds 2 message\(s\), user \+ assistant, .* expected one"),
    ("ultrafeedback.jsonl", "score_chosen", MISSING, "no column `score_chosen`"),
    ("ultrafeedback.jsonl", "score_rejected", "high", "column `score_rejected` holds str 'high'; expected a number"),
    ("hh_rlhf.jsonl", "chosen", MISSING, "no column `chosen`"),
    ("hh_rlhf.jsonl", "rejected", ["No."], "column `rejected` is list .* expected str"),
    ("hh_rlhf.jsonl", "rejected", "\n\nHuman: Hi.\n\nAssistant: Hm.", "share no dialogue; expected both to start"),
    ("helpsteer2.jsonl", "coherence", MISSING, "no column `coherence`"),
    ("helpsteer2.jsonl", "helpfulness", [4], r"column `helpfulness` is list \[4\]; expected float"),
    ("helpsteer2_preference.jsonl", "response_2", MISSING, "no column `response_2`"),
    ("helpsteer2_preference.jsonl", "preference_strength", 4, "is 4; expected a whole number from -3 to 3"),
    ("pandalm.json", "annotator3", MISSING, "no column `annotator3`"),
    ("pandalm.json", "annotator2", 3, r"column `annotator2` is 3; expected 0 \(tie\), 1 or 2"),
    ("pandalm.json", "response1", 1, "column `response1` is int 1; expected str or bool"),
    ("llamafactory_sharegpt.json", "conversations", MISSING, "no column but chosen, rejected; expected conversations"),
    ("llamafactory_sharegpt.json", "chosen", "7", "column `chosen` is str; expected an object with `role`"),
    ("llamafactory_v1.jsonl", "chosen_messages", {}, "column `chosen_messages` is dict {}; expected list"),
    ("llamafactory_alpaca.json", "history", [["Hi."]], "`history` round 0 is no pair of texts; expected"),
    ("llamafactory_kto.json", "label", 1, "column `label` is int 1; expected bool"),
    ("llamafactory_kto.json", "messages", [], "column `messages` holds no message .*; expected one assistant message"),
    ("llmbar.json", "output_2", MISSING, "no column `output_2`"),
    ("llmbar.json", "label", 0, "column `label` is 0; expected 1 or 2"),
]


@pytest.mark.parametrize(("name", "column", "value", "message"), BAD_CELLS)
def test_a_bad_cell_names_file_row_and_expectation_and_costs_only_its_record(
    name: str, column: str, value: object, message: str, tmp_path: Path
) -> None:
    good = raw(name)
    bad = {key: cell for key, cell in good[0].items() if key != column} | ({} if value is MISSING else {column: value})
    path = jsonl(tmp_path / "bad.jsonl", *good, bad, *good[1:])
    with pytest.raises(RecordError, match=rf"bad\.jsonl row {len(good)}: .*{message}"):
        records(READER_OF[name], path)
    rejected: list[dict[str, str]] = []
    kept = list(read(READERS[READER_OF[name]], str(path), rejected=rejected))
    assert [entry["where"] for entry in rejected] == [f"{path} row {len(good)}"]
    assert len(kept) == 2 * len(fixture(name)) - 1


@every_reader
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "bad.jsonl: the file is empty"),
        ("\n\n", "bad.jsonl: the file holds no rows"),
        ("{'chosen': 1}\n", "bad.jsonl row 0: found JSONDecodeError .*; expected an object with named columns"),
        ("[1]\n", r"bad.jsonl row 0: found list \[1\]; expected an object with named columns"),
        (None, "bad.jsonl: there is no such file or folder; expected a dataset file"),
    ],
    ids=["empty", "blank", "not JSON", "not an object", "not there"],
)
def test_a_bad_file_is_named_with_what_was_expected(reader: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecordError, match=message):
        records(reader, path)
