"""The report page: complete, escaped, honest in its headline, fetching nothing, and there whole or not at all."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffalign.data.world.scenes import random_scene, render
from diffalign.evaluate.pages.training import CHARTS, SHOWN, Comparison, write_report
from tests.pages import Page

FACTS = {
    "command": "diffalign quickstart --taste warm --seed 0",
    "seed": 0,
    "version": "0.1.0",
    "model": "assets/tiny-sd",
    "method": "diffusion_dpo",
    "taste": "warm",
    "win_rate": 0.955,
    "ci95": [0.92, 0.98],
    "prompts_heldout": 200,
    "adherence_base": 0.91,
    "adherence_aligned": 0.9,
    "implicit_accuracy_heldout": 0.71,
    "taste_base": 0.5,
    "taste_aligned": 0.8,
    "pairs_train": 335,
    "pairs_heldout": 80,
    "steps": 40,
    "skipped_steps": 0,
    "beta": 2000.0,
    "learning_rate": 3e-4,
    "rank": 8,
    "train_batch_size": 32,
    "seconds": {"sample": 48.25, "train": 122.0},
}


def comparisons(count: int, **changes) -> list[Comparison]:
    rng = np.random.default_rng(count)
    drawn = [render(random_scene(rng), rng) for _ in range(2 * count)]
    return [
        Comparison(**{"prompt": f"prompt {i}", "base": base, "aligned": aligned, "base_score": 0.4, "aligned_score": 0.8} | changes)
        for i, (base, aligned) in enumerate(zip(drawn[::2], drawn[1::2], strict=True))
    ]


def log(count: int, first: int = 1) -> list[dict[str, float]]:
    rng = np.random.default_rng(7)
    return [
        {
            "step": first + i,
            "loss": 0.69 - 0.001 * i + 0.05 * rng.normal(),
            "implicit_acc": rng.uniform(0.4, 0.9),
            "log_ratio/chosen": 1e-5 * i,
            "log_ratio/rejected": -2e-5 * i,
            "rewards/margins_p90": 2e-2 * i,
            "rewards/margins_p10": -1e-3 * i,
            "rewards/saturated": rng.uniform(0.0, 0.2),
            "displaced": rng.uniform(0.0, 0.5),
            "ranking_acc": rng.uniform(0.4, 0.6),
            "alignment_gap": rng.uniform(0.1, 0.2),
            "grad_norm": rng.uniform(0.5, 1.0),
            "lr": 3e-4,
        }
        for i in range(count)
    ]


def page(folder: Path, facts: dict | None = None, rows: list | None = None, compared: list | None = None) -> Page:
    parsed = Page(write_report(folder, FACTS if facts is None else facts, log(40) if rows is None else rows, compared or []))
    assert parsed.open == []
    return parsed


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path):
    parsed = page(tmp_path, compared=comparisons(2))
    fetching = {"src", "href", "srcset", "data", "action"}
    links = [value for _, attributes in parsed.tags for name, value in attributes.items() if name in fetching]
    assert len(links) == 4
    assert all(value is not None and value.startswith("data:") for value in links)
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert "url(" not in parsed.source
    assert "@import" not in parsed.source
    assert len(parsed.all("style")) == 1


def test_every_image_decodes_small_ones_unchanged_and_large_ones_scaled_down(tmp_path):
    small = comparisons(1)
    large = Comparison("big", Image.new("RGBA", (800, 400), (9, 99, 199, 255)), Image.new("L", (400, 800)), 0.1, 0.2)
    images = page(tmp_path, compared=[*small, large]).all("img")
    decoded = []
    for attributes in images:
        kind, data = (attributes["src"] or "").split(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
        assert kind == f"data:image/{(image.format or '').lower()}"
        decoded.append(image)
    assert [image.size for image in decoded] == [(64, 64), (64, 64), (384, 192), (192, 384)]
    assert np.array_equal(np.asarray(decoded[1]), np.asarray(small[0].aligned))
    assert [attributes["class"] for attributes in images] == ["small", "small", "large", "large"]


def test_the_callers_images_are_left_as_they_are(tmp_path):
    image = Image.new("RGB", (800, 400))
    page(tmp_path, compared=[Comparison("big", image, image, 0.1, 0.2)])
    assert image.size == (800, 400)


def test_text_from_outside_is_escaped_wherever_it_lands(tmp_path):
    evil = '<script>alert("1")</script>\'&'
    facts = {**FACTS, "command": evil, "taste": evil, "model": evil, evil: evil, "prompts_heldout": evil, "seconds": {evil: 1.0}}
    parsed = page(tmp_path, facts, compared=comparisons(1, prompt=evil))
    assert not parsed.all("script")
    assert parsed.all("img")[0]["alt"] == f"{evil}, by the base model"
    assert ("h3", evil) in parsed.texts
    assert any(tag == "pre" and evil in text for tag, text in parsed.texts)


def test_a_lone_surrogate_in_a_prompt_does_not_stop_the_page(tmp_path):
    assert "&#55296;" in page(tmp_path, compared=comparisons(1, prompt="\ud800")).source


def test_the_headline_says_what_was_won(tmp_path):
    won = "The aligned model wins 95.5 % of 200 held-out prompts (95 % interval 92 to 98 %) under the taste warm"
    assert page(tmp_path).headline() == won


@pytest.mark.parametrize(
    ("changes", "start", "end"),
    [
        ({"win_rate": 0.55, "ci95": [0.48, 0.62]}, "No clear win: the aligned model wins 55 %", "the interval is not above one half"),
        ({"win_rate": 0.57, "ci95": [0.5, 0.64]}, "No clear win: ", "the interval is not above one half"),
        ({"win_rate": 0.2, "ci95": [0.1, 0.3]}, "The aligned model loses: it wins only 20 %", "the interval lies below one half"),
        ({"ci95": [math.nan, 0.98]}, "The aligned model wins 95.5 % of 200", "there is no interval, so this may be chance"),
        ({"ci95": None}, "The aligned model wins 95.5 % of 200", "there is no interval, so this may be chance"),
        ({"win_rate": math.nan}, "The win rate of the aligned model was not measured", "not measured"),
    ],
)
def test_the_headline_claims_no_more_than_the_interval_shows(tmp_path, changes, start, end):
    headline = page(tmp_path, {**FACTS, **changes}).headline()
    assert headline.startswith(start)
    assert headline.endswith(end)


def test_the_grid_shows_the_first_comparisons_in_order_and_says_so(tmp_path):
    parsed = page(tmp_path, compared=comparisons(SHOWN + 6))
    shown = [text for tag, text in parsed.texts if tag == "h3" and text.startswith("prompt")]
    assert shown == [f"prompt {i}" for i in range(SHOWN)]
    assert "The first 24 of 200 held-out prompts in their own order, not picked" in parsed.source


def test_each_pair_names_its_winner_and_a_score_that_is_not_finite_names_none(tmp_path):
    scores = [(0.1, 0.9), (0.9, 0.1), (0.5, 0.5), (math.nan, 0.5)]
    compared = [c for base, aligned in scores for c in comparisons(1, base_score=base, aligned_score=aligned)]
    captions = re.findall(r"<figcaption>((?:base|aligned) .*?)</figcaption>", page(tmp_path, compared=compared).source)
    plain = [re.sub("<.*?>", "", caption) for caption in captions]
    assert plain[:4] == ["base 0.100", "aligned 0.900 wins", "base 0.900 wins", "aligned 0.100"]
    assert plain[4:] == ["base 0.500 tie", "aligned 0.500 tie", "base &ndash;", "aligned 0.500"]


def test_numbers_come_with_their_change_and_a_plain_line(tmp_path):
    cells = [text for tag, text in page(tmp_path).texts if tag == "td"]
    assert cells[:9] == ["0.500", "0.800", "+0.300", "0.910", "0.900", "−0.010", "–", "0.710", "–"]  # noqa: RUF001  # a true minus and a dash


@pytest.mark.parametrize("missing", [*FACTS, None])
def test_a_missing_fact_drops_only_its_part(tmp_path, missing):
    facts = {key: value for key, value in FACTS.items() if key != missing} if missing else {}
    parsed = page(tmp_path, facts)
    assert "<h2>Training</h2>" in parsed.source
    assert ("<h2>Win rate</h2>" in parsed.source) == ("win_rate" in facts)
    assert ("<h2>Timings</h2>" in parsed.source) == ("seconds" in facts)
    assert "None" not in parsed.source


def test_an_empty_log_or_one_without_known_keys_draws_no_curves(tmp_path):
    for rows in ([], [{"step": 1.0, "epoch": 0.0}]):
        assert "<h2>Training</h2>" not in page(tmp_path, rows=rows).source


def test_one_chart_per_quantity_with_reference_levels(tmp_path):
    parsed = page(tmp_path)
    assert [a["aria-label"] for a in parsed.all("svg")[1:]] == [f"{chart[0]} over the steps" for chart in CHARTS]
    words = [text for tag, text in parsed.texts if tag == "text"]
    assert words.count("step") == len(CHARTS)
    assert "ln 2: equal to its reference" in words
    assert "chance" in words
    assert len(parsed.all("path")) == 2 * (len(CHARTS) + 2)  # two charts have two curves


def test_the_level_at_ln_2_is_for_logistic_losses_only(tmp_path):
    assert "ln 2" not in page(tmp_path, {**FACTS, "method": "diffusion_ipo"}).source


def test_a_curve_breaks_at_values_that_are_not_finite(tmp_path):
    rows = [{"step": float(i), "grad_norm": value} for i, value in enumerate([1.0, 2.0, math.nan, 3.0, math.inf, 2.0])]
    raw = [a["d"] or "" for a in page(tmp_path, rows=rows).all("path") if a["class"] == "raw first"]
    assert [d.count("M") for d in raw] == [3]
    assert "nan" not in raw[0]


def test_a_long_log_keeps_its_spike_and_stays_small(tmp_path):
    rows = log(20_000)
    rows[12_345]["grad_norm"] = 500.0
    parsed = page(tmp_path, rows=rows)
    assert len(parsed.source) < 200_000
    drawn = [[float(y) for y in re.findall(r",([\d.]+)", a["d"] or "")] for a in parsed.all("path") if a["class"] == "raw first"]
    assert min(drawn[3]) == 20.0  # the top of the axis: only the spike is there


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300, 1e30])
def test_a_log_of_one_row_or_of_one_value_is_drawn(tmp_path, value):
    for count in (1, 3):
        rows = [dict.fromkeys(("loss", "implicit_acc", "log_ratio/chosen", "grad_norm", "lr"), value) | {"step": 5} for _ in range(count)]
        assert "nan" not in " ".join(a["d"] or "" for a in page(tmp_path, rows=rows).all("path"))


def test_the_json_is_strict_and_holds_every_fact(tmp_path):
    changed = {"win_rate": np.float32(0.5), "ci95": (np.float64(0.25), math.inf), "beta": math.nan, "model": Path("a/b")}
    facts = {**FACTS, **changed, "counts": np.arange(2)}
    page(tmp_path, facts)
    text = (tmp_path / "report.json").read_text()
    read = json.loads(text, parse_constant=pytest.fail)
    assert list(read) == list(facts)
    assert (read["win_rate"], read["ci95"], read["beta"], read["model"], read["counts"]) == (0.5, [0.25, None], None, "a/b", [0, 1])
    assert '\n  "seed": 0' in text


def test_a_failed_write_leaves_the_former_report_and_nothing_half_written(tmp_path, monkeypatch):
    write_report(tmp_path, FACTS, [], [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.json", "report.html"}
    whole = Path.write_text

    def fail_late(self, data, *args, **options):
        if ".html" in self.name:
            whole(self, data[:100], *args, **options)
            raise OSError("no space left")
        return whole(self, data, *args, **options)

    monkeypatch.setattr(Path, "write_text", fail_late)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, {**FACTS, "seed": 1}, log(3), [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_folder_is_made_and_the_page_path_returned(tmp_path):
    folder = tmp_path / "runs" / "one"
    written = write_report(folder, FACTS, [], [])
    assert written == folder / "report.html"
    assert written.is_file()
