"""What both quickstarts share: the folder, the clock, and the comparison that their report shows."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.core.files import plain, write
from diffalign.evaluate.pages.comparison import Shown, page
from diffalign.evaluate.statistics import ScorerResults, comparison
from diffalign.rewards.base import Scorer
from diffalign.rewards.drift import appearance, features
from diffalign.rewards.table import load_scorer

logger = logging.getLogger(__name__)
MARK = "quickstart.json"  # tells that a quickstart made the folder, and may replace it


@dataclass(slots=True)
class Clock:
    """Seconds by phase; each phase is named in the log as it begins."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        logger.info("%s ...", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 1)


@dataclass(frozen=True, slots=True)
class HeldoutPictures:
    """The pictures of held-out prompts by every model, one of each from the same noise, and the judges of a demonstration."""

    prompts: Sequence[str]
    images: Mapping[str, Sequence[Image.Image]]
    """By model, the base first."""
    taste: str

    def scores(self) -> list[ScorerResults]:
        """Return the scores by the taste, which training learns, and by adherence to the prompt, which is held out of it."""
        taste, adherence = load_scorer({"taste": {"name": self.taste}}, device="cpu"), load_scorer("adherence", device="cpu")
        return [self._by(taste, held_out=False), self._by(adherence, held_out=True)]

    def _by(self, scorer: Scorer, *, held_out: bool) -> ScorerResults:
        about = {"name": scorer.name, "scale": scorer.scale, "licence": scorer.licence}
        values = {who: np.reshape(scorer(images, self.prompts), (-1, 1)) for who, images in self.images.items()}
        return ScorerResults(about, held_out, not held_out, values)

    def facts(self, scores: Sequence[ScorerResults], seed: int) -> dict[str, Any]:
        """Return the comparison, as the page has it; its headline asks the taste."""
        looks = {who: appearance([[image] for image in images], features("pixels")) for who, images in self.images.items()}
        return {"prompts": len(self.prompts), "headline": [self.taste], **comparison(scores, looks, self.prompts, seed)}

    def shown(self, scores: Sequence[ScorerResults], texts: Mapping[str, Sequence[str]]) -> list[Shown]:
        """Return every prompt with its pictures and scores, and the texts that they were drawn from, if a language model wrote these."""
        return [
            Shown(
                prompt,
                {who: images[i] for who, images in self.images.items()},
                {who: {one.name: float(one.values[who][i, 0]) for one in scores} for who in self.images},
                {who: written[i] for who, written in texts.items()},
            )
            for i, prompt in enumerate(self.prompts)
        ]


def write_report(folder: Path, facts: Mapping[str, Any], shown: Sequence[Shown], log: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all, and return the path of the page."""
    facts, report = plain(facts), folder / "report.html"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    drawn = {**facts, "images_per_prompt": 1}  # of the held-out prompts; the setting is about those trained on
    write({folder / "report.json": json.dumps(facts, indent=2) + "\n", report: page(drawn, shown, rows)})
    return report


def fresh(folder: Path) -> None:
    """Empty a folder that an earlier quickstart made. Raises ConfigError for a folder of anything else."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise ConfigError(f"{folder}: not empty, and not made by `diffalign quickstart`; choose another --output_dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("{}\n")
