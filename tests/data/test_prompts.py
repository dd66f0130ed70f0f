"""Prompts by name, from files of every kind and as they are: counts and texts from the originals, errors that name file and row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.core.errors import ConfigError, RecordError, TableError
from diffalign.data.prompts import BUNDLED, PROMPT_SETS, prompts_of, prompts_to_draw, subset


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def on_the_hub(monkeypatch, folder: Path, files: dict[str, str], asked: list) -> None:
    """Stand in for the hub: its copy of any dataset is `folder` with `files`."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def download(repository, *, repo_type, allow_patterns):
        asked.append((repository, repo_type, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_partiprompts_are_read_without_quoting_so_that_quotes_stay():
    prompts = prompts_of(["partiprompts"])
    assert (len(prompts), prompts[0], prompts[-1]) == (1632, "bond", "a series of musical notes on a computer screen")
    assert sum(prompt.startswith('"G I G G L E" painted in thick') for prompt in prompts) == 1


def test_geneval_and_t2i_compbench_are_bundled_whole():
    prompts = prompts_of(["geneval"])
    assert (len(prompts), prompts[0], prompts[-1]) == (553, "a photo of a bench", "a photo of a blue pizza and a yellow baseball glove")
    # 700 in each of eight files, of which color repeats 21, shape 15 and texture 5
    assert len(prompts_of(["t2i-compbench"])) == 8 * 700 - 21 - 15 - 5


def test_every_set_says_what_it_is_and_bundled_ones_have_their_licence_beside_them():
    for name, one in PROMPT_SETS.items():
        assert one.about
        assert one.licence
        assert one.source.endswith(("bundled", "downloaded"))
        assert one.source.endswith("bundled") == (BUNDLED / name / "LICENSE").is_file()


def test_hpsv2_is_its_four_styles_in_order(tmp_path, monkeypatch):
    styles, asked = ("anime", "concept-art", "paintings", "photo"), []
    on_the_hub(monkeypatch, tmp_path, {f"benchmark/{style}.json": json.dumps([f"{style} 1", f"{style} 2"]) for style in styles}, asked)
    assert prompts_of(["hpsv2"]) == [f"{style} {number}" for style in styles for number in (1, 2)]
    assert asked == [("zhwang/HPDv2", "dataset", [f"benchmark/{style}.json" for style in styles])]


def test_pickapic_is_the_distinct_captions_of_its_test_split(tmp_path, monkeypatch):
    asked: list = []
    on_the_hub(monkeypatch, tmp_path, {"data/train-0.parquet": "not asked for"}, asked)
    table = pa.table({"best_image_uid": ["x", "y", "z"], "caption": ["a fox", "a cat", "a fox"]})
    pq.write_table(table, tmp_path / "data/test_unique-00000-of-00001-e8.parquet")
    assert prompts_of(["pickapic"]) == ["a fox", "a cat"]
    assert asked == [("yuvalkirstain/pickapic_v2_no_images", "dataset", ["data/test_unique-*.parquet"])]


def test_a_hub_that_cannot_be_reached_and_a_dataset_that_changed_are_named(tmp_path, monkeypatch):
    on_the_hub(monkeypatch, tmp_path, {"benchmark/anime.json": '["a"]'}, [])
    with pytest.raises(ConfigError, match=r"zhwang/HPDv2: the dataset .* has no benchmark/concept-art.json"):
        prompts_of(["hpsv2"])

    def refuse(*_, **__):
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"zhwang/HPDv2: the hub gives no prompts \(no route\); name a file instead"):
        prompts_of(["hpsv2"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a fox\n\n  ein Fuchs, ä \n"),
        ("a.tsv", "Prompt\tCategory\na fox\tAnimals\nein Fuchs, ä\tAnimals\n"),
        ("a.csv", 'id,caption\n0,a fox\n1,"ein Fuchs, ä"\n'),
        ("a.jsonl", '{"tag": "one", "prompt": "a fox"}\n{"tag": "two", "prompt": "ein Fuchs, \\u00e4"}\n'),
        ("a.json", '[{"prompt": "a fox"}, {"prompt": "ein Fuchs, ä"}]'),
        ("b.json", ' [\n "a fox", "ein Fuchs, ä"]'),
    ],
)
def test_files_of_every_kind_give_the_same_prompts(tmp_path, name, text):
    assert prompts_of([written(tmp_path / name, text)]) == ["a fox", "ein Fuchs, ä"]


def test_tsv_of_pandas_is_unquoted_and_tsv_with_bare_quotes_is_not(tmp_path):
    assert prompts_of([written(tmp_path / "q.tsv", 'prompt\tid\n"a ""big"" fox"\t1\na cat\t2\n')]) == ['a "big" fox', "a cat"]
    assert prompts_of([written(tmp_path / "n.tsv", 'prompt\tid\n"Stop" on a sign\t1\nan open "quote\t2\n')]) == [
        '"Stop" on a sign',
        'an open "quote',
    ]


def test_prompts_files_and_sets_may_be_given_together(tmp_path):
    file = written(tmp_path / "two words.txt", "a fox\na fox\n")
    given = prompts_of(["a cat", file, "geneval", "general", "e.g. a boat", "3.5"])
    assert given[:3] == ["a cat", "a fox", "a fox"]
    assert given[-3:] == ["general", "e.g. a boat", "3.5"]
    assert len(given) == 1 + 2 + 553 + 3
    assert prompts_of([]) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("GenEval", "there is no set `GenEval`. Did you mean `geneval`?"),
        ("parti-prompts", "there is no set `parti-prompts`. Did you mean `partiprompts`?"),
        ("none/geneval.jsonl", "there is no file none/geneval.jsonl, and no set of that name. Did you mean `geneval`?"),
        ("no such file.txt", "there is no file no such file.txt"),
        ("mine.text", "there is no file mine.text"),
        ("node.js", "If the word is a prompt, write it into a .txt file"),
    ],
)
def test_what_looks_like_a_set_or_a_file_but_is_none_is_refused(value, message):
    with pytest.raises(ConfigError) as error:
        prompts_of([value])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a fox"}\n{"text": "a cat"}\n', "a.jsonl row 1: no column `prompt`"),
        ("a.jsonl", '{"prompt": "a fox"}\n{"prompt": " "}\n', "a.jsonl row 1: the prompt is empty"),
        ("a.csv", "prompt,id\na fox,1\na cat, black,2\n", "a.csv row 1: 1 fields more than the header names"),
        ("a.json", '["a fox", 3]', "a.json row 1: column `prompt` is int 3"),
        ("a.json", '["a fox",', "a.json: cannot be read as .json"),
    ],
)
def test_a_row_that_is_no_prompt_is_named(tmp_path, name, text, message):
    with pytest.raises(RecordError) as error:
        prompts_of([written(tmp_path / name, text)])
    assert message in str(error.value)


def test_files_without_prompts_and_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(TableError, match=r"empty.txt: no prompt in the file"):
        prompts_of([written(tmp_path / "empty.txt", "\n \n")])
    with pytest.raises(ConfigError, match=r"a.yaml .*; expected one of .txt, .*.parquet"):
        prompts_of([written(tmp_path / "a.yaml", "prompts: [a]")])


def test_a_subset_is_seeded_keeps_the_order_and_lies_in_every_larger_one():
    prompts = [f"prompt {number:03}" for number in range(200)]
    assert subset(prompts, None) == subset(prompts, 200) == subset(prompts, 999) == prompts
    few, more, other = subset(prompts, 20), subset(prompts, 50), subset(prompts, 20, seed=1)
    assert few == subset(prompts, 20) == sorted(few)
    assert set(few) < set(more)
    assert len(set(few)) == len(set(other)) == 20
    assert few != other
    # by chance a seed takes ten of the first hundred; over 100 seeds the mean lies within four of its deviations, 4 * 2.13 / 10
    halves = [sum(prompt < "prompt 100" for prompt in subset(prompts, 20, seed)) for seed in range(100)]
    assert np.mean(halves) == pytest.approx(10.0, abs=0.86)
    turns = [subset(prompts, 80, turn=turn) for turn in range(3)]  # the last of them has 40 that are left, and 40 of the first's
    assert turns[0] == subset(prompts, 80)
    assert all(turn == sorted(turn) and len(set(turn)) == 80 for turn in turns)
    assert (len({*turns[0], *turns[1]}), len({*turns[0], *turns[1], *turns[2]}), len({*turns[0], *turns[2]})) == (160, 200, 120)
    with pytest.raises(ConfigError, match=r"`max_prompts` is 0"):
        subset(prompts, 0)


def test_pairs_are_drawn_to_a_seeded_subset_so_that_of_sorted_prompts_every_kind_comes():
    prompts = [f"{kind} {number}" for kind in ("animals", "places") for number in range(20)]
    found = prompts_to_draw([*prompts, *prompts], limit=10, seed=1)
    assert found == subset(prompts, 10, 1)
    assert {prompt.partition(" ")[0] for prompt in found} == {"animals", "places"}


def test_a_folder_of_prompts_and_a_named_column_are_read(tmp_path):
    (tmp_path / "set").mkdir()
    written(tmp_path / "set/a.TXT", "a fox\na cat\n")
    written(tmp_path / "set/b.csv", "Utterance;id\nein Fuchs;1\n")
    assert prompts_of([str(tmp_path / "set")], column="utterance") == ["a fox", "a cat", "ein Fuchs"]
    assert prompts_to_draw([], str(tmp_path / "set/b.csv"), column="Utterance") == ["ein Fuchs"]
    with pytest.raises(RecordError, match=r"b\.csv row 0: no column `prompt`.*utterance|Utterance"):
        prompts_of([str(tmp_path / "set")])
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"none holds no file of prompts"):
        prompts_of([str(tmp_path / "none")])
