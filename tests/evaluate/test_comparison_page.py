"""The page of an evaluation: honest in its verdict, escaped, fetching nothing, each part there exactly if its facts are."""

from __future__ import annotations

import math
import re

import pytest
from PIL import Image

from diffalign.evaluate.pages.comparison import Shown
from diffalign.evaluate.pages.comparison import page as markup
from tests.pages import Page


def against(run: str, scorer: str, rate: float | None, ends: list | None, **changes) -> dict:
    counts = {"wins": 12, "losses": 3, "ties": 5, "sign_test_p": 0.0004, "visible_margin": 0.125, "visible_wins": 9}
    moved = {"change": -0.02, "change_ci95": [-0.03, -0.01]}
    return {"run": run, "base": "base", "scorer": scorer, "win_rate": rate, "ci95": ends, **counts, **moved, **changes}


FACTS = {
    "version": "0.1.0",
    "command": "diffalign eval --output_dir run --seed 3",
    "prompts": 40,
    "images_per_prompt": 2,
    "seed": 3,
    "num_inference_steps": 25,
    "guidance_scale": 5.0,
    "runs": [{"name": "base", "path": "tiny-sd", "method": None}, {"name": "dpo", "path": "runs/dpo", "method": "diffusion_dpo"}],
    "scorers": [
        {"name": "adherence", "scale": "a share", "licence": "MIT", "held_out": True, "reward": False},
        {"name": "warm", "scale": "a taste", "licence": "MIT", "held_out": False, "reward": True},
    ],
    "scores": {
        "base": {"adherence": {"mean": 0.9, "mean_ci95": [0.85, 0.95], "median": 1.0, "unjudged": 0}},
        "dpo": {"adherence": {"mean": 0.8, "mean_ci95": [0.75, 0.85], "median": 0.875, "unjudged": 2}},
    },
    "comparisons": [against("dpo", "adherence", 0.615, [0.55, 0.68]), against("dpo", "warm", 0.9, [0.8, 0.95])],
    "drift": {
        "base": {"diversity": 20.0, "saturation": 0.25, "sharpness": 0.0012},
        "dpo": {"diversity": 15.0, "saturation": 0.5, "sharpness": 0.0016},
    },
    "checks": {"base": {"all": 0.5, "color": 1.0}, "dpo": {"all": 0.75, "color": 0.875}},
    "alarm": {"dpo": []},
    "ratings": {"adherence": [{"model": "dpo", "rating": math.log(10), "low": 0.0, "high": 3.0, "wins": 7, "losses": 1, "ties": 2}]},
    "implicit_accuracy_heldout": 0.7,
    "grid": "grid.png",
}
PICTURE = Image.new("RGB", (8, 8))
ROW = re.compile(r'<tr><th scope="row">([^\n]*?)</th>((?:<td>[^\n]*?</td>)+)</tr>')  # of a plain table


def page(folder, facts: dict | None = None, shown: list[Shown] | None = None) -> Page:
    file = folder / "eval.html"
    file.write_text(markup(FACTS if facts is None else facts, shown or []), encoding="utf-8")
    parsed = Page(file)
    assert parsed.open == []
    return parsed


def plain(markup: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<.*?>", " ", markup).replace("&nbsp;", " ")).strip()


def with_runs(*names: str, **changes) -> dict:
    return {**FACTS, "runs": [{"name": name, "path": name, "method": None} for name in names], **changes}


def with_judges(*judged: tuple[str, float, list | None], **changes) -> dict:
    scorers = [{"name": name, "held_out": True, "reward": False} for name, _, _ in judged]
    return {**FACTS, "scorers": scorers, "comparisons": [against("dpo", *one) for one in judged], **changes}


def test_the_headline_is_of_the_held_out_scorers_unless_others_are_named(tmp_path):
    headline = page(tmp_path).headline()
    for fact in ("dpo wins 61.5 % of 40 prompts", "55 to 68 %", "12 won, 3 lost, 5 tied", "held-out adherence", "9 of the 12 wins"):
        assert fact in headline
    own = {**FACTS, "comparisons": FACTS["comparisons"][1:]}
    assert page(tmp_path, own).headline() == "No held-out scorer compared dpo with the base"
    assert page(tmp_path, {**own, "headline": ["warm"]}).headline().startswith("dpo wins 90 % of 40 prompts")


RECORD = "12 won, 3 lost, 5 tied"


@pytest.mark.parametrize(
    ("judged", "headline"),
    [
        ([("a", 0.3, [0.2, 0.4])], f"dpo loses: it wins only 30 % of 40 prompts (95 % interval 20 to 40 %; {RECORD}) under the held-out a"),
        ([("a", 0.6, [0.5, 0.7])], f"No clear win: dpo wins 60 % of 40 prompts (95 % interval 50 to 70 %; {RECORD}) under the held-out a"),
        ([("a", 0.9, None)], f"No clear win: dpo wins 90 % of 40 prompts ({RECORD})"),
        (
            [("a", 0.6, [0.55, 0.7]), ("b", 0.7, [0.6, 0.8])],
            f"dpo wins under both held-out scorers, of 40 prompts: 60 % ({RECORD}) by a and 70 % ({RECORD}) by b",
        ),
        ([("a", 0.6, [0.55, 0.7]), ("b", 0.3, [0.2, 0.4])], "dpo wins under a but loses under b"),
        ([("a", 0.6, [0.55, 0.7]), ("b", 0.5, [0.4, 0.6])], "dpo wins under a; b cannot tell"),
        ([("a", 0.3, [0.2, 0.4]), ("b", 0.5, [0.4, 0.6]), ("c", 0.5, None)], "dpo loses under a; b and c cannot tell"),
        ([("a", 0.5, [0.4, 0.6]), ("b", 0.5, None)], "No clear win: a and b cannot tell dpo from the base"),
        ([("a", None, None)], "No held-out scorer compared dpo with the base"),
    ],
)
def test_the_headline_claims_no_more_than_every_held_out_interval_shows(tmp_path, judged, headline):
    assert page(tmp_path, with_judges(*judged)).headline().startswith(headline)


def test_no_win_is_claimed_that_the_sign_test_denies(tmp_path):
    few = against("dpo", "adherence", 0.542, [0.51, 0.583], wins=4, losses=0, ties=20, sign_test_p=0.125)
    parsed = page(tmp_path, {**FACTS, "comparisons": [few]})
    assert parsed.headline().startswith("No clear win: dpo wins 54.2 % of 40 prompts")
    for fact in ("4 won, 0 lost, 20 tied", "0.12"):
        assert fact in parsed.headline()
    assert re.findall(r'<svg class="(\w+)"', parsed.source) == ["unclear"]


def test_of_many_runs_the_headline_counts_those_that_every_held_out_scorer_prefers(tmp_path):
    compared = [against("dpo", "adherence", 0.6, [0.55, 0.7]), against("mapo", "adherence", 0.5, [0.4, 0.6])]
    parsed = page(tmp_path, with_runs("base", "dpo", "mapo", comparisons=compared))
    assert parsed.headline() == "1 of 2 runs wins against the base under every held-out scorer: dpo"
    sentences = [plain(item) for item in re.findall(r"<li>(.*?)</li>", parsed.source)]
    assert [sentence.split(" ")[0] for sentence in sentences] == ["dpo", "No"]
    none = page(tmp_path, with_runs("base", "dpo", "mapo", comparisons=compared[1:]))
    assert none.headline() == "None of the 2 runs wins against the base under every held-out scorer"


def test_an_alarm_stands_in_the_headline_and_in_a_box_with_its_reasons(tmp_path):
    parsed = page(tmp_path, {**FACTS, "alarm": {"dpo": ["warm rose while <b> fell", "and diversity fell"]}})
    assert parsed.headline().endswith("; the alarm has gone off")
    box = re.search(r'<section class="alarm fired">.*?</section>', parsed.source, re.S)
    assert box
    assert "warm rose while &lt;b&gt; fell" in box[0]
    assert box[0].count("<li>") == 2


def test_a_silent_alarm_says_what_it_watched_or_that_it_could_not_go_off(tmp_path):
    def box(facts: dict) -> str:
        section = re.search(r'<section class="alarm silent">(.*?)</section>', page(tmp_path, facts).source, re.S)
        assert section
        return plain(section[1])

    assert "adherence" in box(FACTS)
    assert "warm" in box(FACTS)
    assert "--reward" in box({**FACTS, "scorers": FACTS["scorers"][:1]})
    assert "could not go off for dpo : too few." in box({**FACTS, "mute": {"dpo": "too few"}})
    two = box({**FACTS, "alarm": {"dpo": [], "mapo": []}, "mute": {"dpo": "too few"}})
    assert "could not go off for dpo : too few. The alarm is silent about mapo ." in two


def test_each_comparison_is_a_row_with_its_numbers_and_the_colour_of_its_verdict(tmp_path):
    lost, unclear = against("dpo", "adherence", 0.2, [0.1, 0.3]), against("dpo", "adherence", 0.5, None, sign_test_p=0.25)
    compared = [*FACTS["comparisons"], lost, unclear]
    source = page(tmp_path, {**FACTS, "comparisons": compared}).source
    rows = re.findall(r"<tr>(.*?)</tr>", source[source.index('<table class="wins">') :], re.S)[1:5]
    cells = [re.findall(r"<td data-label.*?>(.*?)</td>", row, re.S) for row in rows]
    assert [plain(cell) for cell in cells[0]][:3] == ["61.5 % 55 to 68", "12 / 3 / 5 9 can be seen, by over 0.12", "&lt; 0.001"]
    assert plain(cells[0][3]) == "&minus;0.020 &minus;0.030 to &minus;0.010"
    assert [plain(cells[3][0]), plain(cells[3][2])] == ["50 %", "0.250"]
    assert re.findall(r'<svg class="(\w+)"', source) == ["win", "win", "loss", "unclear"]
    assert plain(rows[0]).startswith("adherence held out")
    assert 'class="badge">seen in training<' in rows[1]
    for changes, badge in (({"chose": True}, "chose the weights"), ({"held_out": None}, "unknown whether seen in training")):
        source = page(tmp_path, {**FACTS, "scorers": [FACTS["scorers"][1] | changes]}).source
        assert f'warm <span class="badge">{badge}</span>' in source


def test_null_is_a_dash(tmp_path):
    nothing = against(
        "dpo",
        "adherence",
        None,
        None,
        wins=None,
        losses=None,
        ties=None,
        sign_test_p=None,
        visible_wins=None,
        change=None,
        change_ci95=None,
    )
    source = page(tmp_path, {**FACTS, "comparisons": [nothing]}).source
    cells = re.findall(r"<td data-label.*?>(.*?)</td>", source)
    assert cells == ["&ndash;", "&ndash; / &ndash; / &ndash;", "&ndash;", "&ndash;"]
    assert 'class="plot"></td>' in source


@pytest.mark.parametrize("missing", [*FACTS, None])
def test_a_missing_fact_drops_only_its_part(tmp_path, missing):
    facts = {key: value for key, value in FACTS.items() if key != missing} if missing else {}
    source = page(tmp_path, facts).source
    parts = {"Win rate against the base": "comparisons", "Checks": "checks", "Drift": "drift", "Bradley&ndash;Terry ratings": "ratings"}
    for title, key in parts.items():
        needed = {key, "runs"} if title in ("Checks", "Drift") else {key}
        assert (f"<h2>{title}</h2>" in source) == needed.issubset(facts)
    assert ("<h2>Scores</h2>" in source) == {"scores", "scorers", "runs"}.issubset(facts)
    assert ('class="alarm' in source) == ("alarm" in facts)
    assert not re.search(r"\b(None|nan|null)\b", re.sub(r"<style>.*?</style>", "", source, flags=re.S).replace("default-src 'none'", ""))


def test_scores_checks_and_drift_have_a_column_for_each_run_with_its_change(tmp_path):
    source = page(tmp_path).source
    rows = {plain(head): [plain(cell) for cell in re.findall(r"<td>(.*?)</td>", rest)] for head, rest in ROW.findall(source)}
    by_start = {head.split(" ")[0]: cells for head, cells in rows.items()}
    assert by_start["adherence"] == ["0.900 0.850 to 0.950 median 1.000", "0.800 0.750 to 0.850 median 0.875 2 unjudged"]
    assert by_start["color"] == ["1.000", "0.875 &minus;0.125"]
    assert by_start["diversity"] == ["20", "15 &minus;25.0 %"]
    assert by_start["sharpness"] == ["0.0012", "0.0016 +33.3 %"]
    assert "Implicit accuracy on held-out pairs: 0.7;" in source


def test_ratings_are_elo_points_around_1000(tmp_path):
    source = page(tmp_path).source  # odds of ten to one are 400 points, so log-odds of 3 are 3 * 400 / ln 10 = 521
    assert "<td>1400</td><td>1000 to 1521</td><td>7</td><td>1</td><td>2</td>" in source


def test_the_page_says_how_to_do_it_again(tmp_path):
    commands = [text for tag, text in page(tmp_path).texts if tag == "pre"]
    assert commands == ["diffalign eval --output_dir run --seed 3\n# seed 3\n# diffalign 0.1.0"]


def test_text_from_outside_is_escaped_wherever_it_lands(tmp_path):
    evil = '<script>alert("1")</script>\'&'
    facts = with_runs("base", evil, version=evil, command=evil, alarm={evil: [evil]}, checks={"base": {evil: 1.0}})
    facts |= {"scorers": [{"name": evil, "scale": evil, "licence": evil, "held_out": True}], "scores": {evil: {evil: {"mean": 1.0}}}}
    facts |= {"comparisons": [against(evil, evil, 0.6, [0.55, 0.7])], "ratings": {evil: [{"model": evil, "rating": 0.0}]}}
    scores = {"base": {evil: 0.0}, evil: {evil: 1.0}}
    parsed = page(tmp_path, facts, [Shown(evil, {"base": PICTURE, evil: PICTURE}, scores)])
    assert not parsed.all("script")
    assert parsed.all("img")[1]["alt"] == f"{evil}, by {evil}"
    assert ("h3", evil) in parsed.texts
    assert ("code", evil) in parsed.texts
