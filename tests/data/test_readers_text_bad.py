"""What the readers of text datasets say of bad cells and files: the file, the row and what was expected."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS, read
from tests.data.text_files import FIXTURES, NINE, PRIME, READER_OF, SEVEN, fixture, jsonl, raw, records

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
    ("trl_messages.jsonl", "prompt", [{**PRIME, "role": "usr"}], "message 0 has .* role 'usr'.*mean `user`"),
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
    ("llamafactory_sharegpt.json", "conversations", MISSING, "chosen, rejected; expected conversations"),
    ("llamafactory_sharegpt.json", "chosen", "7", "column `chosen` is str; expected an object with `role`"),
    ("llamafactory_v1.jsonl", "chosen_messages", {}, "column `chosen_messages` is dict {}; expected list"),
    ("llamafactory_alpaca.json", "history", [["Hi."]], "`history` round 0 is not a pair"),
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


@pytest.mark.parametrize("reader", sorted(set(READER_OF.values())))
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "bad.jsonl: the file is empty"),
        ("\n\n", "bad.jsonl: the file holds no rows"),
        ("{'chosen': 1}\n", "bad.jsonl row 0: found a bad line: not JSON .*; expected an object with named columns"),
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


def test_a_rated_response_without_its_partner_is_refused_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    first, second, *rest = raw("helpsteer2.jsonl")
    path = jsonl(tmp_path / "odd.jsonl", first, second, first, *rest)
    rejected: list[dict[str, str]] = []
    assert [record.id for record in read(READERS["helpsteer2"], str(path), rejected=rejected)] == [f"odd.jsonl:{i}" for i in (0, 3, 5)]
    (entry,) = rejected
    assert entry["where"] == f"{path} row 2"
    assert "expected two consecutive rows with one prompt" in entry["reason"]


def test_a_gzipped_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress((FIXTURES / "trl.jsonl").read_bytes())[:-12])
    with pytest.raises(RecordError, match=r"rows\.jsonl\.gz: cannot be read as \.jsonl\.gz"):
        records("trl", packed)
