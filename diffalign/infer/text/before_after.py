"""A prompt writer before and after training: what both make of a short prompt, and the pictures drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from diffalign.core.runs import Run
from diffalign.infer.draw_votes import open_painters
from diffalign.infer.kinds.text import base_writer
from diffalign.infer.load import load
from diffalign.infer.sample import draw
from diffalign.infer.text.rewriter import Rewriter

PROMPT, BASE, TRAINED = "prompt", "base", "trained"


@dataclass(frozen=True, slots=True)
class Version:
    """What one writer makes of a prompt, at each of several seeds."""

    writer: str  # "prompt" for the short prompt as it is, "base" or "trained"
    texts: tuple[str, ...]
    images: tuple[Image.Image, ...] = ()  # drawn from the texts, with the same seeds


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """The base writer of a run, the run's writer, and a pipeline that draws what they write, None where nothing is drawn."""

    base: Rewriter
    trained: Rewriter
    pipe: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `draw`

    @classmethod
    def open(
        cls,
        output_dir: str,
        model: str | None = None,
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 5.0,
        device: str = "cpu",
    ) -> BeforeAfter:
        """Return the writers of a finished run of a language model, and what draws: `model`, a model or a finished run of images.

        Raises CheckpointError for a folder that holds no such run.
        """
        run = Run.open(output_dir, expects="text")
        base, trained = base_writer(run, device=device), load(output_dir, device=device)
        if model is None:
            return cls(base, trained)
        (painter,) = open_painters(model, device=device)
        settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **painter.options}
        return cls(base, trained, painter.pipe, settings)

    def versions(self, prompt: str, *, seed: int = 0, images_per_prompt: int = 4) -> list[Version]:
        """Return the prompt as it is and what both writers make of it; number i of each is written and drawn with seed + i.

        Example:
            >>> writers = BeforeAfter.open("outputs/writer", "assets/tiny-sd")  # doctest: +SKIP
            >>> [version.texts[1] for version in writers.versions("a star")]  # doctest: +SKIP
            ['a star', 'a large orange star at the bottom on a beige background', 'a cyan star at the top on a white background']
        """
        rewrites = {
            name: tuple(writer([prompt], seed=seed, num_return_sequences=images_per_prompt))
            for name, writer in ((BASE, self.base), (TRAINED, self.trained))
        }
        texts = {PROMPT: (prompt,) * images_per_prompt, **rewrites}
        if self.pipe is None:
            return [Version(writer, wordings) for writer, wordings in texts.items()]
        seeds = [seed + number for _ in texts for number in range(images_per_prompt)]
        images = iter(draw(self.pipe, [text for wordings in texts.values() for text in wordings], seeds, **self.settings))
        return [Version(writer, wordings, tuple(next(images) for _ in wordings)) for writer, wordings in texts.items()]
