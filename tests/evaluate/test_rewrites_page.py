"""The report of a rewriter: what it made of a prompt stands under the pictures, and the run without the weight beside it."""

from __future__ import annotations

from PIL import Image

from diffalign.evaluate.pages.training import Comparison, write_report

PICTURE = Image.new("RGB", (8, 8))


def page(folder, facts: dict, *compared: Comparison) -> str:
    return write_report(folder, facts, [], compared).read_text(encoding="utf-8")


def test_rewrites_stand_under_their_pictures_escaped(tmp_path):
    source = page(tmp_path, {}, Comparison("a star", PICTURE, PICTURE, 0.1, 0.2, "a <red> star", "a star at the top"))
    assert '<small><span class="base">base</span> a &lt;red&gt; star</small>' in source
    assert '<small><span class="aligned">aligned</span> a star at the top</small>' in source


def test_pictures_that_no_text_was_written_for_have_none(tmp_path):
    assert "<small>" not in page(tmp_path, {}, Comparison("a star", PICTURE, PICTURE, 0.1, 0.2))


def test_the_run_without_the_weight_has_rows_of_its_own(tmp_path):
    facts = {"taste_base": 0.5, "taste_aligned": 0.75, "taste_plain": 0.8, "kept_base": 0.9, "kept_aligned": 0.95, "kept_plain": 0.7}
    source = page(tmp_path, facts)
    assert "<td>0.900</td><td>0.950</td><td>+0.050</td>" in source
    assert "<td>0.500</td><td>0.800</td><td>+0.300</td>" in source
    assert "<td>0.900</td><td>0.700</td><td>&minus;0.200</td>" in source


def test_without_such_a_run_there_are_none(tmp_path):
    assert "plain" not in page(tmp_path, {"taste_base": 0.5, "taste_aligned": 0.75})
