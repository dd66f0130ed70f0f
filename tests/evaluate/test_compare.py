"""`diffalign eval` from prompts to files. Pictures are painted from their seeds, and by each model in a shade of its own."""

from __future__ import annotations

import gc
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError, RecordError
from diffalign.evaluate import compare as evaluation
from diffalign.evaluate import contestants as entries
from diffalign.evaluate import statistics as comparing
from diffalign.evaluate.compare import evaluate
from diffalign.evaluate.heldout import PairAccuracy
from diffalign.evaluate.options import EvalConfig
from diffalign.evaluate.ratings import bradley_terry
from diffalign.infer import shards as drawing
from diffalign.infer.shards import seed_of
from diffalign.rewards.scorers.function import CallableScorer
from tests.killing import killed_at, tree
from tests.shades import PROMPTS, Shade, add_scorer

SHADES = {"tiny-sd": 0, "base": 20, "good": 40, "bad": -40, "plain": 0, "idle": 0}


def painted(pipe, prompts, seeds, **told):
    """Paint four pixels for each seed, all of them lighter or darker by what the model is."""
    noise = [np.random.default_rng(seed).integers(60, 180, (2, 2, 3)) for seed in seeds]
    return [Image.fromarray((own + SHADES[pipe]).astype(np.uint8)) for own in noise]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(drawing, "draw", painted)
    monkeypatch.setattr(gc, "collect", lambda: None)  # it takes a second, and nothing large is loaded
    monkeypatch.setattr(entries, "base_of", lambda folder, **options: SimpleNamespace(to=lambda device: "tiny-sd"))
    monkeypatch.setattr(entries, "load_pipeline", lambda path, **options: SimpleNamespace(to=lambda device: "plain"))
    monkeypatch.setattr(entries, "load", lambda path, **options: str(path).rpartition("/")[2])
    monkeypatch.setattr(comparing, "bradley_terry", partial(bradley_terry, resamples=100))
    add_scorer(monkeypatch, "red", lambda: Shade("red", 0))
    add_scorer(monkeypatch, "blue", lambda: Shade("blue", 2))


@pytest.fixture
def run(tmp_path):
    """A finished run that paints lighter than its base."""
    return write_run(tmp_path / "good")


def write_run(folder, **facts):
    folder.mkdir(parents=True)
    known = {"method": "diffusion_dpo", "base": "assets/tiny-sd", "train_method": "lora", "table": None, "kind": "image"}
    (folder / "run.json").write_text(json.dumps(known | facts))
    return folder


def config(run, **options):
    return EvalConfig(**{"output_dir": str(run), "scorers": ["red", "blue"], "num_inference_steps": 2, **options})


def test_a_run_is_judged_draw_by_draw_against_its_base(run):
    facts = evaluate(config(run, reward="red"), PROMPTS, command="diffalign eval ...")
    assert [(one["name"], one["method"]) for one in facts["runs"]] == [("base", None), ("good", "diffusion_dpo")]
    assert [(one["name"], one["held_out"], one["reward"]) for one in facts["scorers"]] == [("red", False, True), ("blue", True, False)]
    red, blue = facts["comparisons"]
    assert (red["wins"], red["losses"], red["win_rate"]) == (7, 0, 1.0)  # of the white things nothing is known
    assert (blue["wins"], blue["change"], blue["change_ci95"]) == (9, pytest.approx(40.0), pytest.approx([40.0, 40.0]))
    assert blue["sign_test_p"] == pytest.approx(2 / 2**9)
    assert facts["scores"]["good"]["red"]["unjudged"] == 4
    assert (facts["alarm"], facts["mute"], facts["command"]) == ({"good": []}, {}, "diffalign eval ...")
    assert "ratings" not in facts
    assert json.loads((run / "eval" / "eval.json").read_text()) == facts
    assert sorted(path.name for path in (run / "eval").iterdir()) == ["eval.html", "eval.json", "grid.png", "images"]


def test_every_image_has_a_seed_of_its_prompt_and_number_and_is_scored_as_drawn(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "draw", lambda pipe, prompts, seeds, **told: drawn.append((pipe, seeds)) or painted(pipe, prompts, seeds))
    facts = evaluate(config(run, seed=3, scorers=["blue"]), [*PROMPTS[:2], PROMPTS[0]])
    expected = [seed_of(3, prompt, number) for prompt in PROMPTS[:2] for number in range(2)]
    assert drawn == [("tiny-sd", expected), ("good", expected)]
    first = painted("tiny-sd", [], expected)
    assert facts["scores"]["base"]["blue"]["mean"] == pytest.approx(np.mean([np.asarray(image)[..., 2] for image in first]))
    assert (facts["prompts"], facts["images_per_prompt"]) == (2, 2)


def test_several_runs_and_pipelines_are_rated_and_drawn_once(run, tmp_path, monkeypatch):
    others = [str(write_run(tmp_path / "bad")), "same=owner/model"]
    evaluate(config(run), PROMPTS)
    drawn = []
    monkeypatch.setattr(drawing, "draw", lambda pipe, *rest, **told: drawn.append(pipe) or painted(pipe, *rest, **told))
    facts = evaluate(config(run, runs=others), PROMPTS)
    assert drawn == ["bad", "bad", "plain", "plain"]  # two parts of each; the run and its base were there
    assert [one["name"] for one in facts["runs"]] == ["base", "good", "bad", "same"]
    assert [(one["run"], one["win_rate"]) for one in facts["comparisons"] if one["scorer"] == "blue"] == [
        ("good", 1),
        ("bad", 0),
        ("same", 0.5),
    ]
    rated = facts["ratings"]["blue"]
    assert (rated[0]["model"], rated[0]["wins"], rated[-1]["model"], rated[-1]["losses"]) == ("good", 54, "bad", 54)
    assert {one["model"]: one["ties"] for one in rated} == {"good": 0, "base": 18, "same": 18, "bad": 0}


def test_an_evaluation_that_was_killed_at_any_deed_goes_on_to_the_same_files(run, tmp_path):
    asked = config(run, scorers=["red"], destination=str(tmp_path / "out"), images_per_prompt=1)
    with killed_at(10**6, (drawing, "draw"), (Shade, "__call__")) as life:
        evaluate(asked, PROMPTS)
    whole, rest = tree(tmp_path / "out"), tmp_path / "out"
    for last in np.random.default_rng(0).choice(np.arange(1, life.deeds + 1), 4, replace=False):
        rest.rename(tmp_path / f"before-{last}")
        with killed_at(int(last), (drawing, "draw"), (Shade, "__call__")):
            evaluate(asked, PROMPTS)
        evaluate(asked, PROMPTS)
        assert tree(rest) == whole, last


def test_two_processes_share_the_parts(run, tmp_path, monkeypatch):
    whole = evaluate(config(run), PROMPTS)
    shared = config(run, destination=str(tmp_path / "shared"))
    for index in (1, 0):
        facts = {"process_index": index, "num_processes": 2, "device": "cpu", "is_main_process": index == 0}
        monkeypatch.setattr(evaluation, "process_state", lambda facts=facts: SimpleNamespace(**facts, wait_for_everyone=lambda: None))
        made = evaluate(shared, PROMPTS)
        assert (made is None) is (index == 1)
    assert {key: value for key, value in made.items() if key != "command"} == {k: v for k, v in whole.items() if k != "command"}


def test_other_settings_draw_anew_and_so_does_overwrite(run, caplog):
    first = evaluate(config(run), PROMPTS[:2])
    caplog.set_level("INFO", "diffalign")
    assert evaluate(config(run, guidance_scale=1.0), PROMPTS[:2])["guidance_scale"] == 1.0
    assert "good/00000: images drawn with another `guidance_scale` are drawn anew" in caplog.text
    page = run / "eval" / "images" / "good" / "00000" / "manifest.json"
    assert json.loads(page.read_text())["made_with"]["guidance_scale"] == 1.0
    page.write_text(json.dumps(json.loads(page.read_text()) | {"made_with": json.loads(page.read_text())["made_with"] | {"more": None}}))
    evaluate(config(run, guidance_scale=1.0), PROMPTS[:2])
    assert "another `more`" in caplog.text  # of a later version, say
    before = page.stat().st_mtime_ns
    assert evaluate(config(run, guidance_scale=1.0, overwrite=True), PROMPTS[:2])["scores"] == first["scores"]
    assert page.stat().st_mtime_ns != before


def test_what_cannot_be_meant_is_refused_before_anything_is_drawn(run, tmp_path):
    text = write_run(tmp_path / "text", kind="text", method="dpo")
    user = write_run(tmp_path / "ppd", inference="user", method="ppd", user_encoder={"one_hot": {}})
    scorer = write_run(tmp_path / "bt", kind="reward", method="reward_bt")
    other = write_run(tmp_path / "npo", inference="negative_guidance", method="diffusion_npo")
    twice = [{"clipscore": {"model": model}} for model in ("a", "b")]
    for options, message in (
        ({"images_per_prompt": 0}, "`images_per_prompt` is 0; expected at least 1"),
        ({"scorers": ["rde"]}, "Did you mean `red`"),
        ({"taste": "hig"}, "Did you mean `high`"),
        ({"features": "pixel"}, "Did you mean `pixels`"),
        ({"runs": [str(run)]}, "two of the models are called `good`; name one of --runs as NAME=PATH"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; expected at least 1"),
        ({"features": "pixel"}, "there is no feature `pixel`"),
        ({"scorers": [{"combined": {"scorers": ["red", "blue"]}}]}, "beside each other, which compares no two models"),
        ({"scorers": twice}, "`scorers`: two of them give a score named `clipscore`"),
        ({"positive": str(other)}, "`positive` for these and personalised runs; this is diffusion_dpo"),
        ({"runs": [str(user)]}, "a run of ppd draws for a user"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(config(run, **options), PROMPTS)
    for folder, message in (
        (text, "a run of dpo, which answers with texts; expected one of kind image"),
        (scorer, "a scorer and no generator"),
    ):
        with pytest.raises(CheckpointError, match=message):
            evaluate(config(run, runs=[str(folder)]), PROMPTS)
    with pytest.raises(ConfigError, match="`scorers` is for pictures; give --prompts"):
        evaluate(config(run, dataset_name="tests/data/fixtures"), [])
    with pytest.raises(CheckpointError, match="no such model folder"):
        evaluate(config(run, runs=["./nowhere"]), PROMPTS)
    with pytest.raises(ConfigError, match="is not personalised"):
        evaluate(config(run), PROMPTS, user="ann")
    assert not (run / "eval").exists()


def test_sliders_that_are_none_are_refused_before_anything_is_drawn(run, tmp_path):
    user = write_run(tmp_path / "ppd", inference="user", method="ppd", user_encoder={"one_hot": {}})
    slid = write_run(tmp_path / "slid", inference="user", method="ppd", user_encoder={"slider": {"attributes": ["size"]}})
    for folder, values, message in (
        (slid, {"sise": 0.5}, r"`slider` is 'sise'\. Did you mean `size`"),
        (slid, {"size": 2.0}, r"slider `size` is 2\.0"),
        (user, {"size": 0.5}, "has no sliders to set"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(config(run, runs=[str(folder)]), PROMPTS, user=values)
    with pytest.raises(ConfigError, match="sliders draw as they are set, and rank no pairs"):
        evaluate(config(slid, dataset_name="nowhere.parquet"), PROMPTS, user={"size": 0.5})
    assert not (run / "eval").exists()


def test_a_dataset_that_cannot_be_judged_is_refused_before_drawings_are_removed(run, tmp_path):
    evaluate(config(run), PROMPTS[:1])
    before = tree(run / "eval")
    alone = write_run(tmp_path / "self", method="self_npo", inference="negative_guidance")
    for folder, dataset, error, message in (
        (run, "nowhere.parquet", RecordError, "nowhere.parquet"),
        (alone, "nowhere.parquet", ConfigError, "`self_npo` learns from prompts alone"),
    ):
        with pytest.raises(error, match=message):
            evaluate(config(folder, dataset_name=dataset, overwrite=True), PROMPTS[:1])
    with pytest.raises(ConfigError, match="there is no reader `pickpic`"):
        evaluate(config(run, dataset_name="nowhere.parquet", reader="pickpic", overwrite=True), PROMPTS[:1])
    assert tree(run / "eval") == before


def test_pairs_alone_are_added_to_the_comparison_that_is_there(run, monkeypatch):
    whole = evaluate(config(run), PROMPTS[:1])
    monkeypatch.setattr(evaluation, "check_pairs", lambda *arguments: None)
    monkeypatch.setattr(evaluation, "accuracy_on", lambda *arguments: PairAccuracy(0.75, 3, 1, 0))
    alone = evaluate(config(run, scorers=[], dataset_name="pairs"), [])
    assert (alone["prompts"], alone["implicit_accuracy_heldout"], "runs" in alone) == (0, 0.75, False)  # what was found now
    counts = {"right": 3, "wrong": 1, "tied": 0, "sign_test_p": 0.625}
    measured = {"implicit_accuracy_heldout": 0.75, "heldout_pairs": counts}
    assert json.loads((run / "eval" / "eval.json").read_text()) == whole | measured


def test_another_comparison_stands_beside_the_earlier_one_and_the_same_replaces_it(run, tmp_path):
    first = evaluate(config(run), PROMPTS[:2])
    before = {name: (run / "eval" / name).read_bytes() for name in ("eval.html", "eval.json", "grid.png")}
    second = evaluate(config(run, runs=[str(write_run(tmp_path / "bad"))]), PROMPTS[:2])
    assert (first["page"], second["page"], second["grid"]) == ("eval.html", "eval-bad.html", "grid-bad.png")
    assert {name: (run / "eval" / name).read_bytes() for name in before} == before
    other = evaluate(config(run, runs=[f"bad={write_run(tmp_path / 'elsewhere' / 'bad')}"]), PROMPTS[:2])
    assert other["page"] == "eval-bad-2.html"  # a model of the same name is another one
    assert evaluate(config(run), PROMPTS[:1])["page"] == "eval.html"
    assert json.loads((run / "eval" / "eval.json").read_text())["prompts"] == 1


def test_a_run_in_a_folder_called_base_is_called_run(tmp_path):
    facts = evaluate(config(write_run(tmp_path / "base")), PROMPTS[:1])
    assert [one["name"] for one in facts["runs"]] == ["base", "run"]


def test_a_run_that_draws_the_bases_very_pictures_gets_no_win_rate(run, tmp_path):
    idle = write_run(tmp_path / "idle")
    for options in ({"output_dir": str(idle)}, {"output_dir": str(run), "runs": [str(idle)]}):
        with pytest.raises(CheckpointError, match=r"idle.*changes nothing"):
            evaluate(replace(config(run), **options), PROMPTS)
    assert list(tmp_path.rglob("eval*.json")) == []


def test_two_scores_of_one_name_are_refused(run, monkeypatch):
    add_scorer(monkeypatch, "rouge", lambda: Shade("red", 0))
    with pytest.raises(ConfigError, match="two of them give a score named `red`"):
        evaluate(config(run, scorers=["red", "rouge"]), PROMPTS[:1])


def test_the_command_prints_the_short_of_it(run, tmp_path, capsys):
    words = ["eval", "--output_dir", str(run), "--runs", str(write_run(tmp_path / "bad")), "--scorers", "red", "--reward", "blue"]
    assert main([*words, "--prompts", *PROMPTS, "--max_prompts", "6"]) == 0
    out = capsys.readouterr()
    lines = out.out.splitlines()
    assert lines[0] == "good against assets/tiny-sd, 6 prompts:"
    assert "blue           win rate 1.000" in lines[2]
    for fact in ("6 won, 0 lost, 0 tied, p 0.031", "6 of 6 wins can be seen", "clear win", "(seen in training)"):
        assert fact in lines[2]
    assert "alarm good: silent" in lines
    assert "Bradley-Terry by red:" in lines
    assert lines[-2:] == [str(run / "eval" / "eval-bad.json"), str(run / "eval" / "eval-bad.html")]
    for phase in ("draw good", "score red", "look at good"):  # a line each, where the output is no terminal
        assert phase in out.err
    assert (run / "eval" / "eval-bad.json").read_text().count('"diffalign eval --output_dir') == 1


def add_comparing(monkeypatch):
    """Add a judge that prefers lighter pictures by their red, has no verdict on white things, and counts a flip for each."""

    def compare(first, second, prompts):
        audit.update(pairs=len(prompts), flips=sum("white" in prompt for prompt in prompts))
        light = np.array([[np.asarray(image)[..., 0].mean() for image in images] for images in (first, second)])
        return np.where(["white" in prompt for prompt in prompts], np.nan, 0.5 + 0.5 * np.sign(light[0] - light[1]))

    audit = Counter()
    made = CallableScorer("lighter", "share", lambda images, _: [0.0] * len(images), "here", audit=audit, compare=compare)
    add_scorer(monkeypatch, "vlm", lambda *, protocol: made)
    return {"vlm": {"protocol": "pairwise"}}


def test_a_judge_that_compares_decides_draws_by_its_verdicts(run, tmp_path, monkeypatch, capsys):
    spec = add_comparing(monkeypatch)
    bad = str(write_run(tmp_path / "bad"))
    facts = evaluate(config(run, runs=[bad, "same=owner/model"], scorers=[spec]), PROMPTS)
    good, worse, same = facts["comparisons"]
    assert (good["wins"], good["losses"], good["ties"], good["win_rate"], good["verdict"]) == (7, 0, 0, 1.0, "win")  # 2 are white things
    assert (worse["losses"], worse["win_rate"], same["ties"], same["win_rate"]) == (7, 0.0, 7, 0.5)
    assert (good["ci95"][0], good["sign_test_p"]) == (pytest.approx(0.025 ** (1 / 7), abs=0.05), 2 / 2**7)
    assert (good["change"], good["visible_wins"]) == (1.0, None)  # from 0 to 1
    shares = {who: facts["scores"][who]["lighter"]["mean"] for who in ("base", "good", "bad", "same")}
    assert shares == pytest.approx({"base": (0.0 + 1.0 + 0.5) / 3, "good": 1.0, "bad": 0.0, "same": 0.5})
    assert facts["scores"]["good"]["lighter"]["unjudged"] == 2 * 2
    assert facts["scorers"][0]["audit"] == {"pairs": 6 * 9 * 2, "flips": 6 * 2 * 2}
    rated = facts["ratings"]["lighter"]
    assert (rated[0]["model"], rated[0]["wins"], rated[-1]["model"], rated[-1]["losses"]) == ("good", 3 * 14, "bad", 3 * 14)
    before = tree(run / "eval")
    assert evaluate(config(run, runs=[bad, "same=owner/model"], scorers=[spec]), PROMPTS) == facts
    assert tree(run / "eval") == before
    command_line = ["eval", "--output_dir", str(run), "--scorers", json.dumps(spec), "--prompts", *PROMPTS[:6]]
    assert main(command_line) == 0
    assert "lighter: of 12 pairs 2 flips with the order" in capsys.readouterr().out


def test_verdicts_are_not_taken_for_those_on_other_pictures(run, monkeypatch):
    spec = add_comparing(monkeypatch)
    assert evaluate(config(run, scorers=[spec]), PROMPTS[:1])["comparisons"][0]["wins"] == 1
    monkeypatch.setitem(SHADES, "tiny-sd", 70)
    (run / "eval" / "images" / "base" / "00000" / "manifest.json").unlink()  # drawn anew, with the same settings
    assert evaluate(config(run, scorers=[spec]), PROMPTS[:1])["comparisons"][0]["losses"] == 1
