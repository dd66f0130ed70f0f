"""The pictures of an evaluation: every run's under every prompt, flipped by rules that refer to what is there, never picked in secret."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from diffalign.core.files import write
from diffalign.evaluate.pages import html
from diffalign.evaluate.pages.comparison import page as markup
from diffalign.evaluate.pages.grid import Shown, gained
from tests.pages import Page

PICTURE = Image.new("RGB", (8, 8))
SCORERS = [{"name": "judge", "held_out": True}, {"name": "trained", "held_out": False}]


def drawn(scores: dict[str, list[float]], scorer: str = "judge", prompts: list[str] | None = None) -> list[Shown]:
    """Return one drawing of each run for each score."""
    count = len(next(iter(scores.values())))
    names = prompts or [f"prompt {i}" for i in range(count)]
    images = {run: Image.new("RGB", (8, 8), color) for run, color in zip(scores, ("red", "blue", "green", "white", "black"), strict=False)}
    return [Shown(names[i], images, {run: {scorer: own[i]} for run, own in scores.items()}) for i in range(count)]


def page(folder, shown: list[Shown], **facts) -> Page:
    runs = [{"name": name} for name in shown[0].images] if shown else []
    file = folder / "eval.html"
    write({file: markup({"runs": runs, "scorers": SCORERS, **facts}, shown)})
    parsed = Page(file)
    assert parsed.open == []
    return parsed


def cards(source: str, kind: str) -> list[str]:
    """Return the markup of each card in the grids of a kind: all that flip, or the pairs."""
    start = source.index('<div class="flip') if kind == "flip" else source.index("<h2>Largest losses and wins</h2>")
    end = source.find("<h2>", start + 1)
    return source[start:end].split('<div class="card">')[1:]


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path):
    parsed = page(tmp_path, drawn({"base": [0.0, 1.0], "dpo": [1.0, 0.0]}))
    fetching = {"src", "href", "srcset", "data", "action"}
    links = [value or "" for _, attributes in parsed.tags for name, value in attributes.items() if name in fetching]
    assert len(links) == 8  # two prompts in the grid, and again as largest loss and win
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not parsed.all("script")
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "url(" not in parsed.source
    assert "@import" not in parsed.source
    assert parsed.all("meta")[2]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_prompt_has_the_picture_of_every_run_in_order(tmp_path):
    shown = drawn({"base": [0.0] * 3, "dpo": [1.0] * 3, "mapo": [1.0] * 3})
    for prompt, card in zip(range(3), cards(page(tmp_path, shown).source, "flip"), strict=True):
        assert re.findall(r'class="run run-(\d)"', card) == ["0", "1", "2"]
        assert re.findall(r'alt="(.*?)"', card) == [f"prompt {prompt}, by {run}" for run in ("base", "dpo", "mapo")]


def test_one_radio_button_a_run_in_one_group_and_the_first_aligned_run_chosen(tmp_path):
    radios = page(tmp_path, drawn({"base": [0.0], "dpo": [1.0], "mapo": [1.0]})).all("input")
    assert [radio["id"] for radio in radios] == ["show-0", "show-1", "show-2", "show-all"]
    assert {radio["name"] for radio in radios} == {"show"}
    assert [radio["id"] for radio in radios if "checked" in radio] == ["show-1"]


def test_the_rules_of_flipping_refer_to_what_is_there(tmp_path):
    parsed = page(tmp_path, drawn({"base": [0.0], "dpo": [1.0], "mapo": [1.0]}))
    style = re.search(r"<style>(.*?)</style>", parsed.source, re.S)
    assert style
    classes = {name for _, attributes in parsed.tags for name in (attributes.get("class") or "").split()}
    assert set(re.findall(r"#([\w-]+):checked", style[1])) == {radio["id"] for radio in parsed.all("input")}
    assert set(re.findall(r"\.(run-\d)", style[1])) == {"run-0", "run-1", "run-2"} <= classes
    assert {"flip", "stack", "run", "switch"} <= classes


def test_a_run_hides_the_others_and_gives_way_to_its_counterpart_under_the_pointer_or_the_focus(tmp_path):
    source = page(tmp_path, drawn({"base": [0.0], "dpo": [1.0], "mapo": [1.0]})).source
    kept = re.findall(r"#show-(\d):checked\) \.stack:(not|is)\(:hover, :focus\) \.run:not\(\.run-(\d)\)", source)
    assert [(i, run) for i, state, run in kept if state == "not"] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert [(i, run) for i, state, run in kept if state == "is"] == [("0", "1"), ("1", "0"), ("2", "0")]
    assert source.count('<div class="stack" tabindex="0">') == 1  # the keyboard reaches it


def test_a_single_run_has_nothing_to_flip(tmp_path):
    parsed = page(tmp_path, drawn({"base": [0.0]}))
    assert not parsed.all("input")
    assert len(parsed.all("img")) == 1


def test_the_grid_shows_the_first_prompts_once_each_and_says_of_how_many(tmp_path):
    names = [f"prompt {i // 2}" for i in range(60)]
    source = page(tmp_path, drawn({"base": [0.0] * 60, "dpo": [0.0] * 60}, prompts=names), images_per_prompt=2).source
    assert [re.findall(r"<h3>(.*?)</h3>", card)[0] for card in cards(source, "flip")] == [f"prompt {i}" for i in range(24)]
    assert "The first 24 of 30 prompts in their own order, not picked by result, the first of 2 images each." in source


def test_more_runs_show_fewer_prompts(tmp_path):
    zeros = {run: [0.0] * 30 for run in ("base", "a", "b", "c", "d")}
    assert len(cards(page(tmp_path, drawn(zeros)).source, "flip")) == 19  # 96 pictures // 5


def test_a_caption_marks_what_is_above_and_below_the_base(tmp_path):
    shown = drawn({"base": [0.5, 0.5, 0.5, 0.5], "dpo": [0.75, 0.25, 0.5, math.nan]})
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", "".join(cards(page(tmp_path, shown).source, "flip")))
    marks = [re.sub(r"<.*?>", " ", caption).split()[2:] for caption in captions[1::2]]
    assert marks == [["0.750", "&#9650;"], ["0.250", "&#9660;"], ["0.500"], ["&ndash;"]]


def test_a_win_that_cannot_be_seen_is_hollow_and_not_counted(tmp_path):
    shown = drawn({"base": [0.5] * 4, "dpo": [0.75, 0.55, 0.45, 0.5]})
    margin = [{"run": "dpo", "scorer": "judge", "visible_margin": 0.1}]
    source = page(tmp_path, shown, comparisons=margin).source
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", "".join(cards(source, "flip")))
    assert [re.sub(r"<.*?>", " ", caption).split()[-1] for caption in captions[1::2]] == ["&#9650;", "&#9651;", "&#9661;", "0.500"]
    text = re.sub(r"<.*?>", "", source)
    assert "dpo wins 2, loses 1 and ties 1 under judge; of the 2 wins 1 can be seen" in text


def test_the_text_that_a_picture_was_drawn_from_stands_under_it_escaped(tmp_path):
    shown = [Shown("a star", {"base": PICTURE, "dpo": PICTURE}, {}, {"base": "a <red> star", "dpo": "a star at the top"})]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page(tmp_path, shown).source)
    assert [caption.rpartition("<br>")[2] for caption in captions] == ["a &lt;red&gt; star", "a star at the top"]


def test_images_are_embedded_unchanged_if_small_and_scaled_down_if_large(tmp_path):
    big = Image.new("RGBA", (800, 400), (9, 99, 199, 255))
    images = page(tmp_path, [Shown("a star", {"base": PICTURE, "dpo": big}, {})]).all("img")
    decoded = [Image.open(io.BytesIO(base64.b64decode((one["src"] or "").split(";base64,")[1], validate=True))) for one in images]
    assert [(image.format, image.size) for image in decoded] == [("PNG", (8, 8)), ("JPEG", (384, 192))]
    assert big.size == (800, 400)


def test_a_lone_surrogate_in_a_prompt_does_not_stop_the_page(tmp_path):
    assert "&#55296;" in page(tmp_path, [Shown("\ud800", {"base": PICTURE}, {})]).source


def test_the_largest_losses_and_wins_come_from_all_drawings_by_the_held_out_score(tmp_path):
    base, aligned = [0.5] * 40, [0.5] * 40
    aligned[30:38] = [0.1, 0.9, 0.3, 0.7, 0.2, 0.4, 1.0, math.nan]
    source = page(tmp_path, drawn({"base": base, "dpo": aligned})).source
    picked = [re.search(r"<h3>(prompt \d+) <small>(.*?)</small>", card) for card in cards(source, "pairs")]
    assert [(found[1], found[2]) for found in picked if found] == [
        *(("prompt 30", "&minus;0.400"), ("prompt 34", "&minus;0.300"), ("prompt 32", "&minus;0.200")),
        *(("prompt 36", "+0.500"), ("prompt 31", "+0.400"), ("prompt 33", "+0.200")),
    ]
    assert "Of 40 drawings of each run" in source


def test_a_run_that_never_loses_has_no_losses_and_scores_seen_in_training_pick_nothing(tmp_path):
    assert "<h3>Largest losses of dpo</h3><p>None.</p>" in page(tmp_path, drawn({"base": [0.0], "dpo": [1.0]})).source
    assert "Largest losses" not in page(tmp_path, drawn({"base": [0.0], "dpo": [1.0]}, "trained")).source


def test_gains_of_several_scorers_are_averaged_in_their_own_spreads():
    """`a` scores 0, 0 and 1, 1: spread 1/2, gains of 2 spreads. `b` scores 0, 4 and 4, 0: spread 2, gains of 2 and -2 spreads."""
    pairs = (((0.0, 0.0), (1.0, 4.0)), ((0.0, 4.0), (1.0, 0.0)), ((0.0, 0.0), (1.0, math.nan)))
    shown = [Shown("p", {}, {who: dict(zip("ab", own, strict=True)) for who, own in zip(("base", "dpo"), p, strict=True)}) for p in pairs]
    np.testing.assert_allclose(gained("dpo", "base", shown, ["a", "b"]), [2.0, 0.0, math.nan])
    np.testing.assert_allclose(gained("dpo", "base", shown, ["b"]), [4.0, -4.0, math.nan])


class Lazy(Mapping[str, Image.Image]):
    """Pictures that count how often they are read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Image.Image:
        self.read.append(name)
        return PICTURE

    def __iter__(self) -> Iterator[str]:
        return iter(("base", "dpo"))

    def __len__(self) -> int:
        return 2


def test_only_pictures_that_are_shown_are_read(tmp_path):
    shown = [Shown(f"prompt {i}", Lazy(), {"base": {"judge": 0.0}, "dpo": {"judge": 0.0}}) for i in range(40)]
    page(tmp_path, shown)
    assert [bool(one.images.read) for one in shown if isinstance(one.images, Lazy)] == [True] * 24 + [False] * 16


def test_a_page_of_many_runs_and_loud_pictures_stays_within_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "PAGE", 400_000)
    monkeypatch.setattr(html, "WORDS", 150_000)
    noise = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (160, 160, 3), np.uint8)) for seed in range(3)]
    scores = np.random.default_rng(0).random((60, 3))
    shown = [
        Shown(f"{i} " + "word " * 400, dict(zip("abc", noise, strict=True)), {r: {"judge": s} for r, s in zip("abc", own, strict=True)})
        for i, own in enumerate(scores)
    ]
    source = page(tmp_path, shown).source
    assert source.count("<img") == 3 * 24 + 2 * 2 * 6  # the grid, and the three largest losses and wins of two runs, each with the base
    assert len(source) < 400_000


def test_a_picture_keeps_its_quality_where_there_is_room():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    free, tight = html.picture(noise, "x"), html.picture(noise, "x", 9000)
    assert len(tight) < 9100 < len(free)
    assert html.picture(PICTURE, "x") == html.picture(PICTURE, "x", 1000)
