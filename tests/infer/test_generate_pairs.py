"""Rankings of a model's own images: ranks and margins by hand, seeds that draw the same again, kills that change nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.data.pictures import decode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import ROWS, read_table
from diffalign.data.transforms import TRANSFORMS
from diffalign.data.view import View
from diffalign.infer import generate_pairs as module
from diffalign.infer import shards as drawing
from diffalign.infer.generate_pairs import generate, ranked, standing
from diffalign.infer.options import GenerateConfig
from diffalign.infer.sample import draw
from diffalign.infer.shards import seed_of
from diffalign.models.backbones.table import load_pipeline
from tests.killing import Killed, killing
from tests.shades import add_scorer

PROMPTS = [f"a {color} {shape}" for shape in ("star", "heart", "circle") for color in ("red", "green", "blue", "orange")][:9]


class Redness:
    """Scores the mean red of an image."""

    name, unit, scale, licence, max_tokens, revision = "red", "byte", "mean red in [0, 255]", "Apache-2.0", None, None

    def __call__(self, images, prompts):
        return np.array([np.asarray(image)[..., 0].mean() for image in images], dtype=np.float64)


class Unsure(Redness):
    """Cannot judge the second of the three images of a heart."""

    name = "unsure"

    def __call__(self, images, prompts):
        known = np.array([k % 3 != 1 or "heart" not in prompt for k, prompt in enumerate(prompts)])
        return np.where(known, super().__call__(images, prompts), np.nan)


def red():
    return Redness()


def unsure():
    return Unsure()


def height(images, prompts):
    return [image.height for image in images]


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    for scorer in (red, unsure):
        add_scorer(monkeypatch, scorer.__name__, scorer)


@pytest.fixture
def config(micro_sd, tmp_path):
    return GenerateConfig(
        pretrained_model_name_or_path=str(micro_sd),
        output_dir=str(tmp_path / "table"),
        images_per_prompt=3,
        num_inference_steps=2,
        scorers=["red"],
    )


@pytest.fixture(scope="module")
def whole(micro_sd, tmp_path_factory):
    """The table of nine prompts, two parts, made without a kill."""
    path = tmp_path_factory.mktemp("whole") / "table"
    with pytest.MonkeyPatch.context() as patch:
        add_scorer(patch, "red", red)
        options = {"images_per_prompt": 3, "num_inference_steps": 2, "scorers": ["red"]}
        return generate(GenerateConfig(pretrained_model_name_or_path=str(micro_sd), output_dir=str(path), **options), PROMPTS)


def record(*scores):
    return Record("r", "p", tuple(Candidate(text="x", scores=own) for own in scores))


def ranks(known, by):
    return [candidate.rank for candidate in ranked(known, by, 0.0)[0].candidates]


def test_the_highest_score_ranks_first_and_equal_ones_share_a_rank():
    assert ranks(record({"s": 1.0}, {"s": 4.0}, {"s": 1.0}, {"s": 2.0}), ["s"]) == [3.0, 1.0, 3.0, 2.0]


def test_a_margin_that_is_just_reached_is_enough():
    known = record({"s": 1.0}, {"s": 4.0}, {"s": 2.0})
    assert ranked(known, ["s"], 3.0)[0] is not None
    assert ranked(known, ["s"], 3.5) == (None, "its best image is 3 ahead of the worst, less than 3.5")


def test_several_scores_rank_by_the_mean_share_of_the_others_beaten():
    known = record({"s": 9.0, "t": 0.1}, {"s": 8.0, "t": 0.3}, {"s": 1.0, "t": 0.2})
    assert standing(known, ["s", "t"]) == [0.5, 0.75, 0.25]  # (1 + 0)/2, (1/2 + 1)/2, (0 + 1/2)/2
    assert ranks(known, ["s", "t"]) == [2.0, 1.0, 3.0]


def test_every_prompt_has_all_its_images_with_scores_ranks_and_seeds_that_draw_them_again(whole, micro_sd):
    assert [record.prompt for record in whole] == PROMPTS
    assert (whole.manifest["rejected_rows"], list(whole.manifest["scores"])) == (0, ["red"])
    first = whole[4]
    seeds = [int(seed) for seed in first.meta["seeds"].split()]
    assert seeds == [seed_of(0, PROMPTS[4], number) for number in range(3)]
    again = draw(load_pipeline(str(micro_sd)), [first.prompt] * 3, seeds, num_inference_steps=2)
    for candidate, image in zip(first.candidates, again, strict=True):
        kept = np.asarray(decode_image(candidate.image, "here"), dtype=float)
        assert np.abs(kept - np.asarray(image, dtype=float)).max() <= 1.0  # batches of another size round otherwise
        assert candidate.scores["red"] == pytest.approx(kept[..., 0].mean())
    ordered = sorted(first.candidates, key=lambda candidate: candidate.rank)
    assert [candidate.rank for candidate in ordered] == [1.0, 2.0, 3.0]
    assert ordered[0].scores["red"] > ordered[1].scores["red"] > ordered[2].scores["red"]
    assert first.candidates[0].model == micro_sd.name


@pytest.mark.parametrize(("where", "survived"), [("draw", 1), ("write_table", 1), ("write_table", 2), ("score", 0), ("score", 1)])
def test_a_run_that_was_killed_goes_on_to_the_same_table(config, whole, monkeypatch, where, survived):
    with monkeypatch.context() as patch:
        if where == "score":
            patch.setattr(Redness, "__call__", killing(Redness.__call__, survived))
        else:
            killed = killing(getattr(drawing, where), survived)  # the parts' tables, and then the whole one
            for place in {drawing, module} if where == "write_table" else {drawing}:
                patch.setattr(place, where, killed)
        with pytest.raises(Killed):
            generate(config, PROMPTS)
    calls = []
    monkeypatch.setattr(drawing, "draw", lambda *args, **options: calls.append(args[1]) or draw(*args, **options))
    table = generate(config, PROMPTS)
    assert (table.path / ROWS).read_bytes() == (whole.path / ROWS).read_bytes()
    assert len(calls) == (1 if (where, survived) in (("draw", 1), ("write_table", 1)) else 0)
    assert [path.name for path in table.path.parent.iterdir()] == ["table"]


def test_two_processes_share_the_parts_and_make_the_same_table(config, whole, monkeypatch):
    calls = []
    monkeypatch.setattr(drawing, "draw", lambda *args, **options: calls.append(len(args[1])) or draw(*args, **options))

    def state(index):
        facts = {"process_index": index, "num_processes": 2, "device": "cpu", "is_main_process": index == 0}
        return lambda: SimpleNamespace(**facts, wait_for_everyone=lambda: None)

    monkeypatch.setattr(module, "process_state", state(1))
    assert generate(config, PROMPTS) is None
    monkeypatch.setattr(module, "process_state", state(0))
    table = generate(config, PROMPTS)
    assert calls == [3, 24]  # the ninth prompt, then the eight before it
    assert (table.path / ROWS).read_bytes() == (whole.path / ROWS).read_bytes()


def test_images_drawn_with_other_settings_are_not_taken_without_a_word(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Redness, "__call__", killing(Redness.__call__, 0))
        with pytest.raises(Killed):
            generate(config, PROMPTS[:2])
    other = replace(config, guidance_scale=1.0)
    with pytest.raises(ConfigError, match="another `guidance_scale`"):
        generate(other, PROMPTS[:2])
    assert generate(replace(other, overwrite=True), PROMPTS[:2])[0].meta["guidance_scale"] == "1.0"
    with pytest.raises(TableError, match="exists already"):
        generate(other, PROMPTS[:2])


def test_prompts_that_teach_nothing_are_left_out_with_their_reasons(config, whole):
    """Of four prompts; the margin lies between the largest and the others'."""
    spans = [max(scores) - min(scores) for scores in ([c.scores["red"] for c in record.candidates] for record in whole[:4])]
    least = (sorted(spans)[-1] + sorted(spans)[-2]) / 2.0
    table = generate(replace(config, min_margin=least), PROMPTS[:4])
    assert [record.prompt for record in table] == [PROMPTS[int(np.argmax(spans))]]
    assert len(table.manifest["rejected"]) == 3
    assert all("ahead of the worst, less than" in row["reason"] for row in table.manifest["rejected"])


def test_a_prompt_with_an_image_that_cannot_be_judged_is_left_out_where_that_score_ranks(config):
    prompts, both = [PROMPTS[0], PROMPTS[4]], replace(config, scorers=["red", "unsure"])
    table = generate(replace(both, rank_by="unsure"), prompts)
    assert [record.prompt for record in table] == prompts[:1]
    assert [(scorer["name"], scorer["unjudged"]) for scorer in table.manifest["scorers"]] == [("red", 0), ("unsure", 1)]
    assert "'a red heart': 1 of its 3 images could not be judged" in table.manifest["rejected"][0]["reason"]
    table = generate(replace(both, rank_by="red", overwrite=True), prompts)
    assert [sorted(candidate.scores) for candidate in table[1].candidates] == [["red", "unsure"], ["red"], ["red", "unsure"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorers": []}, "`scorers` is empty"),
        ({"scorers": ["rde"]}, "Did you mean `red`"),
        ({"rank_by": "rid"}, "`rank_by` is 'rid', and no scorer gives it. Did you mean `red`"),
        ({"scorers": [{"hps": {"model": "/mistyped/hps.pt"}}]}, "scorer `hps`: `model` is '/mistyped/hps.pt', and there is no such file"),
        ({"scorers": [{"taste": {"name": "hihg"}}]}, "there is no taste `hihg`. Did you mean `high`"),
        ({"scorers": [{"function": {"path": "tests.infer.test_generate_pairs:mistyped"}}]}, "there is no function `mistyped`"),
        ({"images_per_prompt": 1}, "`images_per_prompt` is 1"),
        ({"min_margin": -1.0}, "`min_margin` is -1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_drawn(config, options, message):
    with pytest.raises(ConfigError, match=message):
        generate(replace(config, **options), PROMPTS)
    with pytest.raises(ConfigError, match="there is no prompt to draw"):
        generate(config, [])


def test_a_scorer_that_is_no_reward_model_is_refused_before_anything_is_drawn(config, tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text(json.dumps({"method": "diffusion_dpo", "base": "assets/tiny-sd", "train_method": "lora"}))
    monkeypatch.setattr(drawing, "draw", None)
    drawn = "which draws pictures; expected one of kind reward"
    for path, message in (("outputs/mistyped", "outputs/mistyped: no finished run"), (tmp_path, drawn)):
        with pytest.raises(CheckpointError, match=message):
            generate(replace(config, scorers=[{"trained": {"path": str(path)}}]), PROMPTS)


def test_scores_that_cannot_rank_are_refused_and_the_images_are_kept_for_the_next_try(config, monkeypatch):
    with pytest.raises(ConfigError, match="`rank_by` is 'rid'"):  # what a function's score is called, only the loaded scorer knows
        generate(replace(config, scorers=[{"function": {"path": "tests.infer.test_generate_pairs:height"}}], rank_by="rid"), PROMPTS[:2])
    with pytest.raises(ConfigError, match="two of them give a score of the same name"):
        generate(replace(config, scorers=["red", "red"]), PROMPTS[:2])
    monkeypatch.setattr(drawing, "draw", None)
    assert len(read_table(generate(replace(config, rank_by="red"), PROMPTS[:2]).path)) == 2


@pytest.mark.parametrize(("scorer", "warns"), [("same", True), ("red", False)])
def test_a_table_whose_prompts_mostly_tie_is_made_with_a_warning(config, tmp_path, monkeypatch, caplog, scorer, warns):
    add_scorer(monkeypatch, "same", lambda: Same())
    monkeypatch.setattr(drawing, "draw", lambda pipe, prompts, seeds, **options: [_shade(seed) for seed in seeds])
    table = generate(replace(config, output_dir=str(tmp_path / "ties"), scorers=[scorer]), PROMPTS[:3])
    assert table is not None
    assert len(table) == 3
    assert ("3 of 3 prompts" in caplog.text) == warns


class Same(Redness):
    """Finds all images equally good."""

    name = "same"

    def __call__(self, images, prompts):
        return np.ones(len(images))


def _shade(seed):
    return Image.new("RGB", (4, 4), (seed % 256, 0, 0))


def test_many_prompts_lie_in_few_shards_and_give_the_same_pictures(config, whole, monkeypatch):
    monkeypatch.setattr(drawing, "MOST_SHARDS", 1)
    table = generate(config, PROMPTS)
    assert [[c.image for c in record.candidates] for record in table] == [[c.image for c in record.candidates] for record in whole]
    assert [record.id for record in table] == [record.id for record in whole]


@pytest.mark.parametrize(("prompts", "count", "size"), [(100, 4, 8), (8192, 4, 8), (25_000, 4, 32), (100_000, 1, 104), (100_000, 16, 16)])
def test_shards_grow_with_the_prompts_as_far_as_their_pictures_allow(tmp_path, prompts, count, size):
    how = {"num_inference_steps": 1, "guidance_scale": 1.0, "seed": 0, "model": "m", "facts": {}, "command": "c", "overwrite": False}
    own = drawing.Drawings(folder=tmp_path, prompts=("p",) * prompts, images_per_prompt=count, **how)
    assert own.size == size
    assert sum(len(own.of(n)) for n in range(len(own))) == prompts


def test_two_models_draw_side_by_side_from_the_same_seeds(config, micro_sd, tmp_path):
    twin = shutil.copytree(micro_sd, tmp_path / "weaker")
    two = replace(config, other_model=str(twin), images_per_prompt=2)
    table = generate(two, PROMPTS[:2])
    assert [[c.model for c in record.candidates] for record in table] == [[micro_sd.name] * 2 + ["weaker"] * 2] * 2
    for record in table:
        pictures = [np.asarray(decode_image(c.image, "x")) for c in record.candidates]
        assert [np.array_equal(pictures[k], pictures[k + 2]) for k in (0, 1)] == [True, True]  # one set of weights under two names
        assert [c.rank for c in record.candidates[:2]] == [c.rank for c in record.candidates[2:]]
    assert list(tmp_path.glob(".table*parts")) == []
    by_order = View(table, [partial(TRANSFORMS["by_model"], order=[micro_sd.name, "weaker"])])
    assert [(record.prob, [c.model for c in record.candidates]) for record in by_order] == [(1.0, [micro_sd.name, "weaker"])] * 2
    unjudged = generate(replace(two, scorers=[], output_dir=str(tmp_path / "bare")), PROMPTS[:1])
    assert [c.rank for c in unjudged[0].candidates] == [None] * 4


def test_two_models_that_cannot_stand_side_by_side_are_refused(config, micro_sd, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such model folder"):
        generate(replace(config, other_model=str(tmp_path / "none")), PROMPTS[:1])  # before the first model draws
    twin = shutil.copytree(micro_sd, tmp_path / "other" / micro_sd.name)
    for changes, message in (
        ({"other_model": str(twin)}, "both models are called"),
        ({"other_model": str(micro_sd), "rewriter": "tiny-lm"}, "`rewriter` makes a table of texts"),
        ({"other_model": "x/y", "scorers": [{"vlm": {"model": "m", "url": "http://x/v1", "protocol": "pairwise"}}]}, "beside each other"),
    ):
        with pytest.raises(ConfigError, match=message):
            generate(replace(config, **changes), PROMPTS[:1])
