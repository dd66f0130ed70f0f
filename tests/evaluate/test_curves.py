"""The curves of a page, and what the page of a training has beside a comparison."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from diffalign.evaluate.pages.comparison import page as markup
from diffalign.evaluate.pages.curves import CHARTS
from tests.pages import Page

FACTS = {
    "command": "diffalign quickstart --taste warm --seed 0",
    "seed": 0,
    "method": "diffusion_dpo",
    "pairs_train": 335,
    "steps": 40,
    "skipped_steps": 0,
    "beta": 2000.0,
    "seconds": {"sample": 48.25, "train": 122.0},
}


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


def page(folder: Path, facts: dict | None = None, rows: list | None = None) -> Page:
    file = folder / "report.html"
    file.write_text(markup(FACTS if facts is None else facts, [], log(40) if rows is None else rows), encoding="utf-8")
    parsed = Page(file)
    assert parsed.open == []
    return parsed


def test_a_page_says_how_the_run_was_trained_and_how_long_each_phase_took(tmp_path):
    parsed = page(tmp_path)
    (lede,) = [text for tag, text in parsed.texts if tag == "p" and "335 pairs" in text]
    assert "in 40 steps" in lede
    assert ("td", "48.2 s") in parsed.texts or ("td", "48.3 s") in parsed.texts


def test_an_empty_log_or_one_without_known_keys_draws_no_curves(tmp_path):
    for rows in ([], [{"step": 1.0, "epoch": 0.0}]):
        assert "<h2>Training</h2>" not in page(tmp_path, rows=rows).source


def test_one_chart_per_quantity_with_reference_levels(tmp_path):
    parsed = page(tmp_path)
    assert [a["aria-label"] for a in parsed.all("svg")] == [f"{chart.title} over the steps" for chart in CHARTS]
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
