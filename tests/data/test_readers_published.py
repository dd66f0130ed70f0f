"""Readers of published layouts, each on a few rows written by hand in that layout: what is kept, in what order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS, read
from diffalign.data.readers.detect import detect
from diffalign.data.records import Record
from tests.data.image_files import JPEGS


def rows(folder: Path, *lines: dict[str, Any]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "rows.jsonl")


def records(name: str, source: str) -> list[Record]:
    assert detect(source) == name
    return list(read(READERS[name], source))


def message(name: str, parent: str | None, role: str, text: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "message_tree_id": "a", "role": role, "text": text, "rank": rank, "lang": "en", **more}


MESSAGES = (
    message("a", None, "prompter", "Why is the sky blue?"),
    message("b", "a", "assistant", "Rayleigh scattering.", 1),
    message("c", "a", "assistant", "It reflects the sea.", 0, model_name="m"),
    message("d", "a", "assistant", "Spam", deleted=True),
    message("e", "b", "prompter", "And at dusk?"),
    message("f", "e", "assistant", "Red, for the way is longer."),
    message("g", "e", "assistant", "Also blue."),
    {**message("h", None, "prompter", "Alone?"), "message_tree_id": "h"},
    {**message("i", "h", "assistant", "One answer."), "message_tree_id": "h"},
)


def test_the_turns_of_openassistant_are_their_ranked_answers_with_the_way_to_them(tmp_path: Path) -> None:
    first, second = records("oasst", rows(tmp_path, *MESSAGES))
    answers = [("Rayleigh scattering.", 2.0, None), ("It reflects the sea.", 1.0, "m")]
    assert [(c.text, c.rank, c.model) for c in first.candidates] == answers
    assert (first.prompt, first.prob, first.meta) == ("Why is the sky blue?", None, {"lang": "en"})
    assert [(m.role, m.content) for m in second.messages] == [
        ("user", "Why is the sky blue?"),
        ("assistant", "Rayleigh scattering."),
        ("user", "And at dusk?"),
    ]
    assert [c.rank for c in second.candidates] == [None, None]
    assert first.id != second.id


def test_a_whole_tree_of_openassistant_is_the_same_turns(tmp_path: Path) -> None:
    tree = {**MESSAGES[0], "replies": [{**MESSAGES[1], "replies": [{**MESSAGES[4], "replies": list(MESSAGES[5:7])}]}, *MESSAGES[2:4]]}
    source = rows(tmp_path, {"message_tree_id": "a", "tree_state": "ready_for_export", "prompt": tree})
    flat = records("oasst", rows(tmp_path, *MESSAGES))
    source = rows(tmp_path, {"message_tree_id": "a", "tree_state": "ready_for_export", "prompt": tree})
    assert [(r.prompt, r.candidates, r.messages) for r in records("oasst", source)] == [(r.prompt, r.candidates, r.messages) for r in flat]


def completion(model: str, overall: Any, helpful: Any, critique: str = "fine") -> dict[str, Any]:
    rated = {"helpfulness": {"Rating": helpful, "Rationale": "so"}, "honesty": {"Rating": "N/A", "Rationale": ""}}
    return {"model": model, "response": f"by {model}", "annotations": rated, "overall_score": overall, "critique": critique}


def test_ultrafeedback_as_first_published_keeps_aspects_models_and_the_critique_of_the_best(tmp_path: Path) -> None:
    made = [completion("x", 7.5, "4", "thin"), completion("y", 8.0, "5", "clear"), completion("z", 7.5, "N/A")]
    (record,) = records("ultrafeedback_original", rows(tmp_path, {"source": "sharegpt", "instruction": "Sum up.", "completions": made}))
    assert [(c.text, c.rank, c.model) for c in record.candidates] == [("by x", 2.0, "x"), ("by y", 1.0, "y"), ("by z", 2.0, "z")]
    assert [dict(c.scores) for c in record.candidates] == [
        {"overall_score": 7.5, "helpfulness": 4.0},
        {"overall_score": 8.0, "helpfulness": 5.0},
        {"overall_score": 7.5},
    ]
    assert dict(record.meta) == {"rationale": "clear", "dataset": "sharegpt"}


def person(overall: str, **aspects: str) -> dict[str, str]:
    return {"evaluator": "w", "overall_pref": overall, **{f"{name}_pref": vote for name, vote in aspects.items()}}


MULTIPREF = {
    "comparison_id": "7",
    "text": "Name a tree.",
    "completion_a": "Oak",
    "completion_b": "Rose",
    "model_a": "x",
    "model_b": "y",
    "normal_worker_annotations": [person("A-is-clearly-better", helpful="Tie"), person("A-is-slightly-better", helpful="Tie")],
    "expert_worker_annotations": [person("Tie", helpful="A-is-clearly-better"), person("B-is-clearly-better")],
}


def test_multiprefs_label_is_the_share_of_its_four_people(tmp_path: Path) -> None:
    (record,) = records("multipref", rows(tmp_path, MULTIPREF))
    assert record.prob == (1 + 1 + 0.5 + 0) / 4
    assert [dict(c.scores) for c in record.candidates] == [{"helpful": pytest.approx(2 / 3)}, {"helpful": pytest.approx(1 / 3)}]
    assert [(c.text, c.model) for c in record.candidates] == [("Oak", "x"), ("Rose", "y")]
    assert record.meta["comparison_id"] == "7"


def pictured(folder: Path) -> None:
    for place, data in enumerate(JPEGS[:2]):
        (folder / f"{place}.jpg").write_bytes(data)


RAPIDATA = {
    "prompt": "a fox",
    "image1": "0.jpg",
    "image2": "1.jpg",
    "model1": "flux",
    "model2": "sdxl",
    "weighted_results_image1_preference": 0.75,
    "weighted_results_image2_preference": 0.25,
    "weighted_results_image1_alignment": 0.4,
    "weighted_results_image2_alignment": 0.6,
}
RICHHF = {
    "filename": "0.jpg",
    "prompt": "a fox",
    "aesthetics_score": 0.5,
    "artifact_score": 0.25,
    "misalignment_score": 1.0,
    "overall_score": 0.75,
    "prompt_misalignment_label": "1 0",
}
HPDV3 = {
    "prompt": "a fox",
    "path1": "0.jpg",
    "path2": "1.jpg",
    "model1": "kolors",
    "model2": "real",
    "choice_dist": [4, 12],
    "confidence": 0.99,
}


def test_rapidatas_shares_are_label_and_scores(tmp_path: Path) -> None:
    pictured(tmp_path)
    (record,) = records("rapidata", rows(tmp_path, RAPIDATA))
    assert (record.prob, record.meta["question"]) == (0.75, "preference")
    assert [dict(c.scores) for c in record.candidates] == [{"preference": 0.75, "alignment": 0.4}, {"preference": 0.25, "alignment": 0.6}]
    assert [c.model for c in record.candidates] == ["flux", "sdxl"]
    assert [c.image for c in record.candidates] == JPEGS[:2]
    alone = {name: value for name, value in RAPIDATA.items() if "preference" not in name}
    (record,) = records("rapidata", rows(tmp_path, alone))
    assert (record.prob, record.meta["question"]) == (0.4, "alignment")


def test_richhf_is_one_picture_with_four_scores(tmp_path: Path) -> None:
    pictured(tmp_path)
    (record,) = records("richhf", rows(tmp_path, RICHHF))
    (picture,) = record.candidates
    assert dict(picture.scores) == {"aesthetics": 0.5, "artifact": 0.25, "misalignment": 1.0, "overall": 0.75}
    assert (record.prompt, record.prob, dict(record.meta)) == ("a fox", 1.0, {"prompt_misalignment_label": "1 0"})


def test_the_first_of_hpdv3_is_preferred_by_the_larger_share(tmp_path: Path) -> None:
    pictured(tmp_path)
    first, second = records("hpdv3", rows(tmp_path, HPDV3, {**HPDV3, "choice_dist": None}))
    assert (first.prob, second.prob, first.meta["confidence"]) == (0.75, 1.0, "0.99")
    assert [c.model for c in first.candidates] == ["kolors", "real"]


@pytest.mark.parametrize(
    ("name", "row", "change", "message"),
    [
        ("ultrafeedback_original", {"instruction": "x", "completions": [{"response": 3}]}, {}, "completion 0 has no `response`"),
        ("ultrafeedback_original", {"instruction": "x", "completions": [completion("x", "high", 1)]}, {}, "`overall_score` is 'high'"),
        ("multipref", MULTIPREF, {"expert_worker_annotations": [person("A")]}, "`overall_pref` is 'A'; expected one of A-is-clearly"),
        ("multipref", MULTIPREF, {"normal_worker_annotations": "none"}, "expected a list of objects"),
        ("multipref", MULTIPREF, {"normal_worker_annotations": [], "expert_worker_annotations": None}, "nobody has voted"),
        (
            "multifaceted",
            {**dict.fromkeys(("main_source", "prompt"), "x"), "system": 3, "chosen": [], "rejected": []},
            {},
            "`system` is int 3",
        ),
        ("rapidata", RAPIDATA, {"weighted_results_image1_preference": -1}, "expected shares above zero"),
        ("richhf", RICHHF, {"overall_score": 4.5}, "`overall_score` is 4.5; expected a number in"),
        ("hpdv3", HPDV3, {"choice_dist": [0, 0]}, "expected how many people chose each"),
        ("hpdv3", HPDV3, {"choice_dist": [3]}, "has 1 entries; expected 2"),
        ("hpdv3", HPDV3, {"path2": "none.jpg"}, "there is no image"),
    ],
)
def test_a_bad_row_is_named(name: str, row: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path) -> None:
    pictured(tmp_path)
    with pytest.raises(RecordError, match=message) as error:
        list(read(READERS[name], rows(tmp_path, {**row, **change})))
    assert "rows.jsonl row 0" in str(error.value)


@pytest.mark.parametrize(("change", "text"), [({"rank": "best"}, "`rank` is 'best'"), ({"text": None}, "`text` is NoneType")])
def test_an_answer_of_openassistant_that_cannot_be_read_is_named(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"message a: {text}"):
        list(read(READERS["oasst"], rows(tmp_path, MESSAGES[0], {**MESSAGES[1], **change}, MESSAGES[2])))


def test_a_pair_of_the_multifaceted_collection_stands_behind_its_system_message(tmp_path: Path) -> None:
    user, says = {"role": "user", "content": "Why is the sky blue?"}, {"role": "system", "content": "You love poems."}
    one, two = ({"role": "assistant", "content": text} for text in ("A shimmer.", "Rayleigh scattering."))
    common = {"main_source": "nectar", "original_source": "x", "system": "You love poems.", "prompt": "Why is the sky blue?"}
    lines = [{**common, "chosen": [*start, one], "rejected": [*start, two]} for start in ([user], [says, user], [])]
    made = records("multifaceted", rows(tmp_path, *lines))
    assert [[(m.role, m.content) for m in r.messages] for r in made] == [[("system", "You love poems."), ("user", user["content"])]] * 3
    assert [[c.text for c in r.candidates] for r in made] == [["A shimmer.", "Rayleigh scattering."]] * 3
    assert {(r.prob, r.meta["dataset"]) for r in made} == {(1.0, "nectar")}


def test_why_one_was_preferred_is_kept(tmp_path: Path) -> None:
    pictured(tmp_path)
    own = {"prompt": "a fox", "image_0": "0.jpg", "image_1": "1.jpg", "label_0": 1, "rationale": "It has a tail."}
    (record,) = records("columns", rows(tmp_path, own))
    assert record.meta["rationale"] == "It has a tail."
    rated = {"prompt": "Name a tree.", "response_1": "Oak", "response_2": "Rose", "preference_strength": -2}
    rated |= {"preference_statement": "@Response 1 is better.", "preference_elaboration": "A rose is no tree."}
    (record,) = records("helpsteer2", rows(tmp_path, rated))
    assert record.meta["rationale"] == "A rose is no tree."
    (record,) = records("trl", rows(tmp_path, {"prompt": "A tree?", "chosen": "Oak", "rejected": "Rose", "rationale": "It is one."}))
    assert record.meta["rationale"] == "It is one."
