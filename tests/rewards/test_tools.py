"""Rewards from counting, detecting and reading: what prompts ask for, GenEval's rules, failures that are no scores, and kept evidence."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table, write_table
from diffalign.data.world.captions import caption
from diffalign.data.world.judge import adherence, read
from diffalign.data.world.scenes import random_scene, render
from diffalign.evaluate.pages.evidence import names_of, page
from diffalign.rewards.score_table import score_table
from diffalign.rewards.scorers import client
from diffalign.rewards.scorers.tools import tools
from diffalign.rewards.table import load_scorer
from diffalign.rewards.tools.detectors import transformers_detector
from diffalign.rewards.tools.findings import Box, Findings, Line, checks, color_of, drawn, place_of, relations
from diffalign.rewards.tools.requirements import Requirements, Wanted, from_geneval, parse

KNOWN = ["dog", "car", "bench", "wine glass", "person"]
URL = "http://127.0.0.1:1/boxes"


def test_a_prompt_asks_for_things_numbers_colours_places_and_a_text():
    for prompt, labels, expected in (
        ("a photo of two dogs", KNOWN, Requirements((Wanted("dog", 2),), (("dog", 3),))),
        ("a photo of a red car and a dog", KNOWN, Requirements((Wanted("car", 1, "red"), Wanted("dog")))),
        (
            "a photo of a dog to the left of three wine glasses",
            KNOWN,
            Requirements((Wanted("dog", relation=("left of", 1)), Wanted("wine glass", 3)), (("wine glass", 4),)),
        ),
        ("People at the left", KNOWN, Requirements((Wanted("person", place="left"),))),
        (
            "a small grey heron above an old bench",
            None,
            Requirements((Wanted("heron", 1, "gray", None, ("above", 1)), Wanted("old bench"))),
        ),
        ('a shop with a sign that says "Grand Opening"', KNOWN, Requirements(text="Grand Opening")),
        ("a dog on a gray background", KNOWN, Requirements((Wanted("dog"),))),
        ("dreams of tomorrow", KNOWN, Requirements()),
        ("two red cars and a blue car", KNOWN, Requirements((Wanted("car", 2, "red"), Wanted("car", 1, "blue")), (("car", 4),))),
        ("a painting of a dog without a car", None, Requirements((Wanted("dog"),), (("car", 1),))),
        ("a bench and no dogs", KNOWN, Requirements((Wanted("bench"),), (("dog", 1),))),
    ):
        assert parse(prompt, labels) == expected, prompt


def test_genevals_metadata_is_taken_as_it_is():
    row = {
        "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 2, "color": "red", "position": ["left of", 0]}],
        "exclude": [{"class": "dog", "count": 3}],
    }
    assert from_geneval(row, "x") == Requirements((Wanted("bench"), Wanted("dog", 2, "red", None, ("left of", 0))), (("dog", 3),))
    for bad in (
        {},
        {"include": [{}]},
        {"include": [{"class": "dog", "position": ["beside", 0]}]},
        {"include": [{"class": "a", "count": "x"}]},
    ):
        with pytest.raises(ConfigError, match="file line 3: expected GenEval's `include`"):
            from_geneval(bad, "file line 3")


def box(label, x, y, score=0.9, color=None, side=10):
    return Box(label, score, (x, y, x + side, y + side), color)


def test_checks_are_genevals_rules():
    found = Findings(
        (100, 100), (box("dog", 5, 40, 0.5, "red"), box("dog", 5, 60, 0.9, "blue"), box("bench", 70, 50)), (Line("OPEN 24h", 1.0),)
    )
    for wanted, expected in (
        ((Wanted("dog", 2),), [1.0]),
        ((Wanted("dog", 3),), [0.0]),
        ((Wanted("dog", 1, "blue"),), [1.0, 1.0]),  # the best box
        ((Wanted("dog", 2, "blue"),), [1.0, 0.0]),
        ((Wanted("dog", 2, relation=("left of", 1)), Wanted("bench")), [1.0, 1.0, 1.0]),
        ((Wanted("dog", 2, relation=("above", 1)), Wanted("bench")), [1.0, 0.0, 1.0]),
        ((Wanted("dog", place="left"),), [1.0, 1.0]),
        ((Wanted("cat", place="left"),), [0.0, 0.0]),
    ):
        assert list(checks(Requirements(wanted), found).values()) == expected, wanted
    both = Requirements((Wanted("dog", 1, "red"), Wanted("dog", 1, "blue")))
    assert set(checks(both, found).values()) == {1.0}  # a box for each, though the best is blue
    assert list(checks(Requirements((Wanted("dog"), *both.include)), found).values()) == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert set(checks(both, Findings((100, 100), (box("Dog", 5, 40, color="Red"), box("DOG", 50, 60, color="blue")))).values()) == {1.0}
    assert list(checks(Requirements((), (("dog", 2),)), found).values()) == [0.0]
    assert list(checks(Requirements((), (("dog", 3),)), found).values()) == [1.0]
    assert checks(Requirements(text="Open 24"), found) == {'"Open 24"': 1.0}
    assert checks(Requirements(text="open 25h"), found) == {'"open 25h"': pytest.approx(1 - 1 / 7)}  # one of seven letters


def test_a_relation_needs_more_than_overlap_and_places_are_five():
    """Offsets of 4 with sizes of 10 are within the slack of 2 in 4 - 2 = 2 across; none within 2."""
    assert relations((4, 0, 14, 10), (0, 0, 10, 10)) == {"right of"}
    assert relations((1, 0, 11, 10), (0, 0, 10, 10)) == set()
    assert relations((0, 30, 10, 40), (30, 0, 40, 10)) == {"left of", "below"}
    assert [place_of((x, y, x, y), (100, 100)) for x, y in ((50, 50), (30, 50), (50, 75), (45, 52))] == [
        "center",
        "left",
        "bottom",
        "center",
    ]


def test_colours_are_those_of_a_boxs_middle():
    image = Image.new("RGB", (40, 40), "white")
    image.paste((240, 20, 30), (10, 10, 30, 30))
    assert color_of(image, (8, 8, 32, 32)) == "red"
    assert color_of(image, (0, 0, 5, 5)) == "white"
    assert drawn(image, [{"label": "dog", "box": [0, 0, 39, 39]}]).getpixel((0, 20)) == (255, 0, 0)


def test_the_embedded_world_is_checked_exactly():
    """Shape, colour and place of captions: the share equals the judge's own, which knows size and background besides."""
    rng = np.random.default_rng(0)
    scorer = load_scorer({"tools": {"detector": "world"}})
    for _ in range(20):
        scene, other = random_scene(rng), random_scene(rng)
        named = {name: value for name, value in other.attributes().items() if name in ("shape", "color", "position")}
        image = render(scene, rng)
        shown = read(image)
        own = load_scorer({"tools": {"detector": "world", "score": "all"}})([image], [caption(named)])[0]
        assert own == float(adherence(caption(named), shown) == 1.0)
        if shown.attributes["shape"] == named["shape"]:
            assert scorer([image], [caption(named)])[0] == pytest.approx(adherence(caption(named), shown))
    right = caption({name: value for name, value in scene.attributes().items() if name != "size"})
    assert scorer([image], [right])[0] == 1.0
    assert math.isnan(scorer([image], ["something nice"])[0])


def test_the_evidence_stands_in_the_table(tmp_path):
    rng = np.random.default_rng(1)
    scene = random_scene(rng, shape="star", color="red")
    images = [Candidate(image=encode_image(render(scene, rng))), Candidate(image=encode_image(Image.new("RGB", (64, 64))))]
    records = [Record("a", "a red star", tuple(images), source="a"), Record("b", "nothing to check", tuple(images), source="b")]
    write_table(tmp_path / "table", records)
    made = score_table(read_table(tmp_path / "table"), tmp_path / "scored", [{"tools": {"detector": "world"}}])
    first, second = json.loads(made[0].meta["evidence.tools"])
    assert made[0].candidates[0].scores["tools"] == 1.0
    assert first["checks"] == {"1 star": 1.0, "1 star: red": 1.0}
    assert (first["boxes"][0]["label"], first["boxes"][0]["color"]) == ("star", "red")
    assert (second["checks"], second["boxes"]) == ({"1 star": 0.0, "1 star: red": 0.0}, [])
    assert "tools" not in made[1].candidates[0].scores
    assert names_of(made) == ["tools"]
    html = page(made, "tools")
    assert html.count("<img") == 2
    assert "1 star: red (1.00)" in html
    assert "1 star: red (0.00)" in html
    assert json.loads(made[1].meta["evidence.tools"]) == [None, None]


BOXES = {"boxes": [[{"label": "dog", "score": 0.9, "box": [0, 0, 5, 5]}]]}
BAD = {
    "prose": b"I see a dog",
    "half": json.dumps(BOXES).encode()[:-4],
    "two lists": json.dumps({"boxes": [[], []]}).encode(),
    "none": json.dumps({"boxes": []}).encode(),
    "lines": json.dumps({"lines": [[]]}).encode(),
    "no box": json.dumps({"boxes": [[{"label": "dog"}]]}).encode(),
    "nan": b'{"boxes": [[{"label": "dog", "box": [0, 0, NaN, 1]}]]}',
    "a number": json.dumps({"boxes": [3]}).encode(),
    "inside out": json.dumps({"boxes": [[{"label": "dog", "box": [5, 0, 1, 1]}]]}).encode(),
}


@pytest.fixture
def server(monkeypatch):
    """Return the answers that the tools' server gives next, an exception being raised; the last is given again and again."""
    answers = []

    def answer(url, body, timeout, key):
        assert (url, len(body["images"]), body["labels"]) == (URL, 1, ["dog"])
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(now, Exception):
            raise now
        return now

    monkeypatch.setattr("diffalign.rewards.tools.detectors.post", answer)
    return answers


def judge(**changes):
    return tools(detector={"http": {"url": URL}}, **changes)


def test_no_failure_of_a_tool_is_a_score(server):
    image, good = Image.new("RGB", (8, 8)), json.dumps(BOXES).encode()
    server[:] = [good]
    assert judge()([image], ["a dog"]).tolist() == [1.0]
    for name, bad in BAD.items():
        server[:] = [bad, good]  # asked again
        assert judge()([image], ["a dog"]).tolist() == [1.0], name
        server[:] = [bad]
        with pytest.raises(ConfigError, match=URL):
            judge()([image], ["a dog"])
        left = judge(on_failure="leave_out")
        assert math.isnan(left([image], ["a dog"])[0]), name
        assert (left.audit["failed"], left.evidence) == (1, [None])
    server[:] = [client.NoAnswerError(f"{URL} gives no answer (status 500), asked 6 times")]
    with pytest.raises(ConfigError, match="status 500"):
        judge()([image], ["a dog"])
    assert math.isnan(judge(on_failure="leave_out")([image], ["a dog"])[0])


def dogs(images, labels):
    """Return a tool's answer: a dog in every picture, whatever is looked for."""
    return [[{"label": "dog", "score": 0.8, "box": [0, 0, 5, 5]}] for _ in images]


def too_few(images, labels):
    return []


def lines(images, labels):
    return [[{"text": "Hello", "score": 1.0}] for _ in images]


def test_functions_are_tools_too(tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    here = "tests.rewards.test_tools"
    scorer = tools(detector={"function": {"path": f"{here}:dogs"}}, reader={"function": {"path": f"{here}:lines"}})
    scores = scorer([image] * 3, ["a red dog", "a cat", 'a dog saying "help"'])
    assert scores.tolist() == [1.0, 0.0, pytest.approx((1.0 + 0.5) / 2)]  # of four letters one is another, and one too many
    with pytest.raises(ConfigError, match="gives 0 lists of boxes for 1 images"):
        tools(detector={"function": {"path": f"{here}:too_few"}})([image], ["a dog"])
    (tmp_path / "meta.jsonl").write_text(json.dumps({"prompt": "p", "include": [{"class": "dog", "count": 2}]}) + "\n")
    known = tools(detector={"function": {"path": f"{here}:dogs"}}, metadata=str(tmp_path / "meta.jsonl"))
    assert known([image], ["p"]).tolist() == [0.0]


def test_tools_that_cannot_be_meant_are_refused(tmp_path):
    for constants, message in (
        ({}, "neither a `detector` nor a `reader`"),
        ({"detector": "wrold"}, "there is no detector `wrold`.*`world`"),
        ({"reader": "world"}, "there is no reader `world`"),
        ({"detector": {"http": {"url": "ftp://x"}}}, "expected http:// or https://"),
        ({"detector": "world", "metadata": str(tmp_path / "none")}, "cannot be read"),
        ({"reader": "rapidocr"}, r"pip install 'diffalign\[ocr\]'"),
    ):
        with pytest.raises(ConfigError, match=message):
            tools(**constants)


def test_a_detection_model_of_transformers_finds_boxes(tmp_path):
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    names = {0: "dog", 1: "car"}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "num_detection_tokens": 3}
    config = YolosConfig(**sizes, image_size=[32, 32], patch_size=16, id2label=names, label2id={v: k for k, v in names.items()})
    YolosForObjectDetection(config).save_pretrained(tmp_path)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    found = transformers_detector(model=str(tmp_path), threshold=0.0)
    assert found.labels == ("dog", "car")
    (boxes,) = found.find([Image.new("RGB", (64, 48))], ["dog"])
    assert 0 < len(boxes) <= 3
    assert {b.label for b in boxes} <= {"dog", "car"}
    assert all(0.0 <= b.score <= 1.0 for b in boxes)
