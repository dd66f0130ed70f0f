"""Tools that find things and texts in pictures: models of transformers, an OCR library, a function, a server, the embedded world's judge.

A tool that fails finds nothing and says so by an error or by None; it never finds an empty picture.
"""

from __future__ import annotations

import base64
import importlib.util
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core.documents import parse_json
from diffalign.core.errors import CheckpointError, ConfigError, shortened
from diffalign.core.specs import Spec, bind
from diffalign.data.colours import flattened
from diffalign.data.pictures import encode_image
from diffalign.data.world import judge
from diffalign.data.world.scenes import SHAPES, SIZE
from diffalign.models.weights import UNREADABLE
from diffalign.rewards.scorers.client import BadAnswerError, NoAnswerError, check_address, key_variable, post, read_answer
from diffalign.rewards.scorers.function import function
from diffalign.rewards.tools.findings import Box, Line

logger = logging.getLogger(__name__)
PICTURES = 8  # in one request


@dataclass(frozen=True, slots=True)
class Tool:
    """Finds boxes, or lines of text, in pictures."""

    find: Callable[[Sequence[Image.Image], Sequence[str]], list[Any]]
    """(images, labels to look for) -> for each image a list of `Box` or `Line`, None where the tool failed and is left out."""
    labels: tuple[str, ...] | None = None  # all that it can find; None for one that is told what to look for


def world() -> Tool:
    """Return the embedded world's judge as a detector: one shape with its colour, by measurement."""

    def find(images: Sequence[Image.Image], labels: Sequence[str]) -> list[list[Box]]:  # noqa: ARG001  # it sees what there is
        return [_shape(judge.read(image), image) for image in images]

    return Tool(find, SHAPES)


def _shape(reading: judge.Reading, image: Image.Image) -> list[Box]:
    if "shape" not in reading.attributes:
        return []
    scale = (image.width / SIZE, image.height / SIZE)
    x, y = (value + SIZE / 2 for value in reading.center)
    r = reading.radius
    corners = ((x - r) * scale[0], (y - r) * scale[1], (x + r) * scale[0], (y + r) * scale[1])
    return [Box(reading.attributes["shape"], reading.overlap, corners, reading.attributes["color"])]


def transformers_detector(*, model: str, threshold: float = 0.3, revision: str | None = None, device: str = "cpu") -> Tool:
    """Return a detection model of transformers, zero-shot where the model is; `threshold` is GenEval's for other tasks than counting.

    Raises CheckpointError for a model that does not load, or detects nothing.
    """
    from transformers import AutoConfig, pipeline
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES as ZERO_SHOT

    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
        zero_shot = config.model_type in ZERO_SHOT
        task: Any = "zero-shot-object-detection" if zero_shot else "object-detection"
        run: Any = pipeline(task, model=model, revision=revision, device=device, model_kwargs={"use_safetensors": True})
    except UNREADABLE as error:
        raise CheckpointError(f"{model}: no detection model of transformers can be loaded from here: {error}") from error

    def find(images: Sequence[Image.Image], labels: Sequence[str]) -> list[list[Box]]:
        options = {"candidate_labels": list(labels)} if zero_shot else {}
        lists = [run(flattened(image), threshold=threshold, **options) if labels or not zero_shot else [] for image in images]
        return [[_box_of(one) for one in boxes] for boxes in lists]

    return Tool(find, None if zero_shot else tuple((config.id2label or {}).values()))


def _box_of(one: Mapping[str, Any]) -> Box:
    corners = one["box"]
    return Box(str(one["label"]), float(one["score"]), (corners["xmin"], corners["ymin"], corners["xmax"], corners["ymax"]))


def called(*, path: str, kind: str) -> Tool:
    """Return a tool by a Python function (images, labels) -> for each image a list of {label, score, box} or {text, score}."""
    run: Any = function(path=path).function

    def find(images: Sequence[Image.Image], labels: Sequence[str]) -> list[list[Any]]:
        try:
            return read_lists(run(images, labels), len(images), kind, f"the function {path}")
        except BadAnswerError as error:
            raise ConfigError(str(error)) from error

    return Tool(find)


def on_server(*, url: str, name: str, timeout: float, kind: str, leave_out: bool, audit: Counter[str]) -> Tool:
    """Return a tool on a server, which is sent JSON {"images": [PNG in base64], "labels": [...]} and answers {"boxes": [[{label, score,
    box: [left, top, right, bottom]}]]}, or {"lines": [[{text, score}]]}: a list for each image. Failures are met as `scorers.client` says.
    """
    check_address("tools", url, name)

    def find(images: Sequence[Image.Image], labels: Sequence[str]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(images), PICTURES):
            part = images[start : start + PICTURES]
            body = {"images": [base64.b64encode(encode_image(image)).decode() for image in part], "labels": list(labels)}
            try:
                found += read_answer(lambda: _sent(url, body, timeout, name), lambda content: _answer(content, url, kind, len(part)))  # noqa: B023  # called at once
                audit["answered"] += len(part)
            except NoAnswerError as error:
                if not leave_out:
                    raise
                logger.warning("%s; %d pictures are left out", error, len(part))
                audit["failed"] += len(part)
                found += [None] * len(part)
        return found

    return Tool(find)


def _sent(url: str, body: Mapping[str, Any], timeout: float, name: str) -> bytes:
    return post(url, body, timeout, os.environ.get(key_variable(name)))


def _answer(content: bytes, url: str, kind: str, count: int) -> list[list[Any]]:
    where = f"the answer of {url}"
    answer: Any = parse_json(content, where, BadAnswerError)
    if not isinstance(answer, dict) or kind not in answer:
        raise BadAnswerError(f'{url} answers without `{kind}`; expected {{"{kind}": [[...], ...]}}')
    return read_lists(answer[kind], count, kind, url)


def read_lists(found: Any, count: int, kind: str, where: str) -> list[list[Any]]:
    """Return what a tool gives for `count` images as lists of `Box` or `Line`. Raises BadAnswerError for anything else."""
    if not isinstance(found, list | tuple) or len(found) != count:
        number = len(found) if isinstance(found, list | tuple) else "no"
        raise BadAnswerError(f"{where} gives {number} lists of {kind} for {count} images; expected one for each")
    return [[_read(one, kind, where) for one in own] if isinstance(own, list | tuple) else _refuse(own, kind, where) for own in found]


def _refuse(value: Any, kind: str, where: str) -> Any:
    form = "{label, score, box: [left, top, right, bottom]}" if kind == "boxes" else "{text, score}"
    raise BadAnswerError(f"{where} gives {shortened(repr(value))}; expected lists of {form}")


def _read(one: Any, kind: str, where: str) -> Box | Line:
    try:
        score = float(one.get("score", 1.0))
        if kind == "lines":
            if not isinstance(one["text"], str) or not math.isfinite(score):
                _refuse(one, kind, where)
            return Line(one["text"], score)
        left, top, right, bottom = (float(x) for x in one["box"])
        if not all(map(math.isfinite, (score, left, top, right, bottom))) or right < left or bottom < top:
            _refuse(one, kind, where)
        return Box(str(one["label"]), score, (left, top, right, bottom), one.get("color"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadAnswerError):
            raise
        _refuse(one, kind, where)
        raise


def rapidocr() -> Tool:
    """Return the OCR of the package rapidocr-onnxruntime (extra `ocr`). Raises ConfigError without it."""
    if importlib.util.find_spec("rapidocr_onnxruntime") is None:
        raise ConfigError("`reader: rapidocr` needs a package that is not installed: pip install 'diffalign[ocr]'")
    from rapidocr_onnxruntime import RapidOCR  # pyright: ignore[reportMissingImports]  # optional

    engine = RapidOCR()

    def find(images: Sequence[Image.Image], labels: Sequence[str]) -> list[list[Line]]:  # noqa: ARG001  # it reads all there is
        results = [engine(np.asarray(flattened(image))[:, :, ::-1])[0] or [] for image in images]
        return [[Line(str(text), float(score)) for _, text, score in lines] for lines in results]

    return Tool(find)


def tool(spec: Spec, kind: str, *, timeout: float, leave_out: bool, device: str, audit: Counter[str]) -> Tool:
    """Return the tool of a spec: {transformers: {model}}, {function: {path}}, {http: {url, name}}, `rapidocr` or `world`.

    `audit` counts the pictures that a server `answered`, and those that `failed`.
    """

    def by_function(*, path: str) -> Tool:
        return called(path=path, kind=kind)

    def by_server(*, url: str, name: str = "tools") -> Tool:
        return on_server(url=url, name=name, timeout=timeout, kind=kind, leave_out=leave_out, audit=audit)

    table: dict[str, Callable[..., Tool]] = {"function": by_function, "http": by_server}
    table |= {"transformers": transformers_detector, "world": world} if kind == "boxes" else {"rapidocr": rapidocr}
    return bind("detector" if kind == "boxes" else "reader", table, spec, device=device)()
