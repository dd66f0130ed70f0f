"""The scorer by tools: counting, detecting and reading, which a picture cannot flatter (Themis' idea, 2310.01045, with GenEval's checks).

A score is the share of what the prompt asks for that the tools find, or 1 for all of it; the evidence, boxes, texts and checks, is kept
in the scored table. A picture whose tool failed has no score, and so has one whose prompt names nothing that can be checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from diffalign.core.documents import parse_json
from diffalign.core.errors import ConfigError
from diffalign.core.specs import Spec
from diffalign.rewards.scorers.clip import clipscore
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.http import OnFailure
from diffalign.rewards.tools.detectors import Tool, tool
from diffalign.rewards.tools.findings import Box, Findings, checks, color_of, evidence
from diffalign.rewards.tools.requirements import COLORS, Requirements, from_geneval, parse


def tools(
    *,
    detector: Spec | None = None,
    reader: Spec | None = None,
    metadata: str | None = None,
    score: Literal["share", "all"] = "share",
    colors: str = "pixels",
    name: str = "tools",
    timeout: float = 120.0,
    on_failure: OnFailure = "stop",
    device: str = "cpu",
) -> CallableScorer:
    """Return the scorer by a detector, a reader, or both; see `tools.detectors.tool` for their specs.

    What a prompt asks for is read from its words, or from the line of `metadata`, a file of GenEval's (JSON lines with `prompt`), that has
    this prompt. `colors` are named by the median of a box's pixels, or by a CLIP, as in GenEval. Raises ConfigError for neither tool, and
    where a tool cannot be made; what becomes of a server's failure says `on_failure`.
    """
    if detector is None and reader is None:
        raise ConfigError("scorer `tools`: names neither a `detector` nor a `reader`; give one or both")
    about: dict[str, Any] = {"timeout": timeout, "leave_out": on_failure == "leave_out", "device": device, "audit": Counter()}
    finder = None if detector is None else tool(detector, "boxes", **about)
    ocr = None if reader is None else tool(reader, "lines", **about)
    painter = None if colors == "pixels" or finder is None else clipscore(model=colors, device=device)
    inspector = Inspector(finder, ocr, painter, {} if metadata is None else read_metadata(metadata), whole=score == "all")
    scale = "1 if tools find all that is asked for, else 0" if inspector.whole else "share in [0, 1] of what is asked for that tools find"
    own: dict[str, Any] = {"audit": about["audit"], "evidence": inspector.notes}
    return CallableScorer(name, scale, inspector.scores, "the tools", licence="the tools' own", unit="share", **own)


@dataclass(frozen=True, slots=True)
class Inspector:
    """Looks at pictures with tools, and keeps in `notes` what the scores of the last call stand on."""

    finder: Tool | None
    ocr: Tool | None
    painter: Any  # a scorer of pictures and texts that names colours; None for the nearest by pixels
    written: Mapping[str, Requirements]  # by prompt
    whole: bool  # whether a score is 1 for everything, and 0 else
    notes: list[str | None] = field(default_factory=list)

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Return a score for each image (N,), NaN where a tool failed or there is nothing to check."""
        self.notes.clear()
        return [self._score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score(self, image: Image.Image, prompt: str) -> float:
        wanted = self.written.get(prompt) or asked_for(prompt, self.finder, self.ocr)
        checkable = bool(wanted.include or wanted.exclude or wanted.text)
        findings = look(image, wanted, self.finder, self.ocr, self.painter) if checkable else None
        if findings is None:
            self.notes.append(None)
            return float("nan")
        results = checks(wanted, findings)
        self.notes.append(json.dumps(evidence(findings, results)))
        return float(min(results.values()) >= 1.0) if self.whole else sum(results.values()) / len(results)


def asked_for(prompt: str, finder: Tool | None, ocr: Tool | None) -> Requirements:
    """Return what a prompt asks for that the tools at hand can check."""
    wanted = parse(prompt, finder.labels if finder is not None else ())
    return wanted if ocr is not None else replace(wanted, text=None)


def look(image: Image.Image, wanted: Requirements, finder: Tool | None, ocr: Tool | None, painter: Any) -> Findings | None:
    """Return what the tools find of what is wanted, None where one that is needed failed. Raises as the tools do."""
    boxes: Sequence[Box] | None = ()
    lines: Any = ()
    if finder is not None and wanted.labels:
        (boxes,) = finder.find([image], wanted.labels)
    if ocr is not None and wanted.text is not None:
        (lines,) = ocr.find([image], ())
    if boxes is None or lines is None:
        return None
    colored = {one.label for one in wanted.include if one.color is not None}
    named = (box if box.color or box.label not in colored else replace(box, color=_color(image, box, painter)) for box in boxes)
    return Findings(image.size, tuple(named), tuple(lines))


def _color(image: Image.Image, box: Box, painter: Any) -> str:
    if painter is None:
        return color_of(image, box.box)
    left, top, right, bottom = (round(value) for value in box.box)
    crop = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    scores = painter([crop] * len(COLORS), [f"a photo of a {color} {box.label}" for color in COLORS])
    return list(COLORS)[int(scores.argmax())]


def read_metadata(file: str) -> dict[str, Requirements]:
    """Return what each prompt of a file of GenEval's metadata asks for. Raises ConfigError for a file that is none."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"scorer `tools`: `metadata`: {file} cannot be read ({error})") from error
    made: dict[str, Requirements] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        row: Any = parse_json(line.encode(), where, ConfigError)
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ConfigError(f"{where}: expected an object with `prompt` and `include`")
        made[row["prompt"]] = from_geneval(row, where)
    return made
