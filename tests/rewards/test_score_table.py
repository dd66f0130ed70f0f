"""Scoring tables and folders: every image once, in named scores, whatever is killed in between."""

from __future__ import annotations

import json
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError, RecordError, TableError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import ROWS, Table, read_table, write_table
from diffalign.rewards import score_table as module
from diffalign.rewards.folder import images_of
from diffalign.rewards.score_table import score_table
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.table import SCORERS
from tests.rewards import mine

RED = {"function": {"path": "tests.rewards.mine:redness"}}


def red(value):
    return encode_image(Image.new("RGB", (4, 3), (value, 0, 0)))


@pytest.fixture(autouse=True)
def fresh():
    """Forget earlier calls, and fail no more."""
    mine.calls.clear()
    mine.fail_after.clear()


def write_rows(path, count):
    """Write records of one to three images, the second of which cannot be judged; the first has a score already."""
    rows = []
    for index in range(count):
        images = [Candidate(image=red(10 * index + k), scores={"old": 1.0} if index == 0 else {}) for k in range(index % 3 + 1)]
        rows.append(Record(f"r{index}", "skip" if index == 1 else "a", tuple(images), source=f"row {index}"))
    return write_table(path, rows, reader="mine")


@pytest.fixture
def table(tmp_path):
    return write_rows(tmp_path / "table", 7)


def scores(table):
    return {record.id: [dict(candidate.scores) for candidate in record.candidates] for record in table}


def test_every_image_gets_the_named_score_and_keeps_those_it_had(table, tmp_path):
    found = score_table(table, tmp_path / "scored", [RED, "adherence"])
    assert scores(found)["r0"] == [{"old": 1.0, "redness": 0.0}]
    assert scores(found)["r1"] == [{}, {}]  # not judged, by either: the prompt names nothing
    assert scores(found)["r5"] == [{"redness": 50.0}, {"redness": 51.0}, {"redness": 52.0}]
    assert found.manifest["reader"] == "mine"
    redness, adherence = found.manifest["scorers"]
    assert (redness["name"], redness["spec"], redness["unjudged"]) == ("redness", RED, 2)
    assert (adherence["name"], adherence["unjudged"]) == ("adherence", 13)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored", "table"]


def test_a_table_can_be_scored_in_place_and_again(table, tmp_path):
    with pytest.raises(TableError, match="exists already"):
        score_table(table, table.path, [RED])
    first = score_table(table, table.path, [{"function": RED["function"] | {"name": "red"}}], overwrite=True)
    second = score_table(first, table.path, [RED], overwrite=True)
    assert scores(second)["r6"] == [{"red": 60.0, "redness": 60.0}]
    assert [scorer["name"] for scorer in second.manifest["scorers"]] == ["red", "redness"]


def test_a_candidate_with_a_prompt_of_its_own_is_scored_under_that(tmp_path):
    record = Record("r", "skip", (Candidate(image=red(1), prompt="a"), Candidate(image=red(2))))
    found = score_table(write_table(tmp_path / "t", [record]), tmp_path / "scored", [RED])
    assert scores(found)["r"] == [{"redness": 1.0}, {}]


def test_killed_ten_times_at_random_points_it_writes_the_same_file(tmp_path):
    table = write_rows(tmp_path / "table", 21)  # 42 images, and a kill lets three of them by at most
    whole = score_table(table, tmp_path / "whole", [RED, "adherence"], shard=1)
    rng = np.random.default_rng(0)
    for _ in range(10):
        mine.fail_after[:] = [int(rng.integers(0, 4))]
        with pytest.raises(KeyboardInterrupt):
            score_table(table, tmp_path / "killed", ["adherence", RED], shard=1)
        assert not (tmp_path / "killed").exists()
    mine.fail_after.clear()
    found = score_table(table, tmp_path / "killed", [RED, "adherence"], shard=1)
    assert (found.path / ROWS).read_bytes() == (whole.path / ROWS).read_bytes()
    assert found.manifest == whole.manifest


def test_what_is_finished_is_not_scored_again_after_a_kill(table, tmp_path):
    mine.fail_after[:] = [8]  # of thirteen images: four records (1 + 2 + 3 + 1), and part of the next
    with pytest.raises(KeyboardInterrupt):
        score_table(table, tmp_path / "scored", [RED], shard=1)
    mine.fail_after.clear()
    mine.calls.clear()
    score_table(table, tmp_path / "scored", [RED], shard=1)
    assert sum(mine.calls) == 13 - 7


def test_scorers_of_one_name_texts_and_no_scorers_are_refused(table, tmp_path):
    with pytest.raises(ConfigError, match="two of them give a score named `redness`"):
        score_table(table, tmp_path / "scored", [RED, RED])
    with pytest.raises(ConfigError, match="`scorers` is empty"):
        score_table(table, tmp_path / "scored", [])
    with pytest.raises(ConfigError, match=r"there is no scorer `pickscor`\. Did you mean `pickscore`"):
        score_table(table, tmp_path / "scored", ["pickscor"])
    texts = write_table(tmp_path / "texts", [Record("r", "p", (Candidate(text="t"),))])
    with pytest.raises(TableError, match="scorers judge images"):
        score_table(texts, tmp_path / "scored", [RED])


@pytest.fixture
def folder(tmp_path):
    """Three images: 2 and 10 with texts beside them, the same prompt for both; sub/1 named in metadata."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for name, value in (("10.png", 10), ("2.png", 2), ("sub/1.png", 1)):
        (root / name).write_bytes(red(value))
    for name in ("10.txt", "2.txt"):
        (root / name).write_text("a ring\n")
    (root / "sub" / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "a star"}) + "\n")
    return str(root)


def test_the_images_of_a_folder_are_candidates_of_their_prompts_in_the_order_of_their_numbers(folder):
    found = {record.prompt: [candidate.uid for candidate in record.candidates] for record in images_of(folder)}
    assert found == {"a ring": ["2.png", "10.png"], "a star": ["sub/1.png"]}


def test_with_prompts_every_image_is_a_candidate_of_every_prompt(folder, tmp_path):
    found = [(record.prompt, [candidate.uid for candidate in record.candidates]) for record in images_of(folder, ["x", "y"])]
    everything = ["2.png", "10.png", "sub/1.png"]
    assert found == [("x", everything), ("y", everything)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no image"):
        list(images_of(str(tmp_path / "empty")))


def test_the_table_opens_anywhere_with_its_scores(table, tmp_path):
    score_table(table, tmp_path / "scored", [RED])
    assert read_table(tmp_path / "scored").manifest["scores"]["redness"] == {"min": 0.0, "max": 60.0}


def test_what_was_scored_before_a_failure_is_kept_and_the_same_call_goes_on_from_there(tmp_path):
    images = [Candidate(image=red(k)) for k in range(80)]
    table = write_table(tmp_path / "t", [Record("r", "a", tuple(images))])
    whole = score_table(table, tmp_path / "whole", [RED])
    mine.calls.clear()
    mine.fail_after.append(70)  # in the third batch of 32
    with pytest.raises(KeyboardInterrupt):
        score_table(table, tmp_path / "scored", [RED])
    mine.fail_after.clear()
    assert scores(score_table(table, tmp_path / "scored", [RED])) == scores(whole)
    assert mine.calls == [32, 32, 16, 16]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored", "t", "whole"]


def test_a_judge_that_compares_has_one_record_at_a_time_and_what_it_counts_is_kept_over_a_failure(tmp_path, monkeypatch):
    """Records of one prompt are not compared with each other, and the counts are of every question once."""
    seen = []

    def shares(images, prompts):
        if len(seen) == 2 and not mine.fail_after:
            mine.fail_after.append(0)
            raise KeyboardInterrupt
        seen.append(len(images))
        audit.update(pairs=len(images))
        return [0.5] * len(images)

    audit = Counter()
    made = CallableScorer("share", "share", shares, "here", audit=audit, together=True)
    monkeypatch.setitem(SCORERS, "taste", lambda *, name: made)
    table = write_table(tmp_path / "t", [Record(f"r{k}", "a", tuple(Candidate(image=red(i)) for i in range(3))) for k in range(4)])
    with pytest.raises(KeyboardInterrupt):
        score_table(table, tmp_path / "scored", [{"taste": {"name": "high"}}])
    (about,) = score_table(table, tmp_path / "scored", [{"taste": {"name": "high"}}]).manifest["scorers"]
    assert (seen, about["audit"]) == ([3, 3, 3, 3], {"pairs": 12})


def test_two_processes_share_the_shards_and_make_the_same_table(table, tmp_path, monkeypatch):
    whole = score_table(table, tmp_path / "whole", [RED], shard=1)
    mine.calls.clear()
    together = threading.Barrier(2, timeout=60)

    def state():
        index = int(threading.current_thread().name)
        facts = {"process_index": index, "num_processes": 2, "is_main_process": index == 0}
        return SimpleNamespace(**facts, wait_for_everyone=together.wait)

    monkeypatch.setattr(module, "process_state", state)
    made: dict[str, Table] = {}

    def process():
        made[threading.current_thread().name] = score_table(table, tmp_path / "shared", [RED], shard=1)

    both = [threading.Thread(target=process, name=str(index)) for index in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert {name: len(found) for name, found in made.items()} == {"0": 7, "1": 7}
    assert (made["0"].path / ROWS).read_bytes() == (whole.path / ROWS).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared", "table", "whole"]
