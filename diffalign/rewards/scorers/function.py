"""The scorer by a Python function that a user brings, used only where the user names it (`core.trust`), and what calls such functions."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError, shortened
from diffalign.rewards.base import check_arguments

Images = Sequence[Image.Image]
Compare = Callable[[Images, Images, Sequence[str]], Any]


@dataclass(frozen=True, slots=True)
class CallableScorer:
    """A scorer by a function of images and prompts, whose answer is checked."""

    name: str
    scale: str
    function: Callable[[Sequence[Image.Image], Sequence[str]], Any]
    where: str
    licence: str = "the user's own"
    max_tokens: int | None = None
    revision: str | None = None
    unit: str | None = None
    audit: Counter[str] = field(default_factory=Counter)
    """What became of the questions so far, by name; empty for a scorer that asks none."""
    compare: Compare | None = None
    """Of a judge that compares: (first images, second images, prompts) -> the chance (N,) that the first is better, NaN where there is no
    verdict."""
    together: bool = False
    """Whether the score of an image is one beside those of its prompt's others."""
    evidence: list[str | None] | None = None
    """What the scores of the last call stand on, JSON an image; None for a scorer that keeps nothing."""

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,). Raises ConfigError for an answer that is not one number an image."""
        check_arguments(images, prompts)
        return self._checked(self.function(images, prompts), len(images)) if images else np.empty(0)

    def _checked(self, answer: Any, count: int) -> np.ndarray:
        try:
            scores = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{self.where} gives a {type(answer).__name__} that is no list of numbers") from error
        if scores.shape != (count,):
            raise ConfigError(f"{self.where} gives scores of shape {scores.shape} for {count} images; expected one number each")
        if np.isinf(scores).any():
            raise ConfigError(f"{self.where} gives {scores[np.isinf(scores)][0]} for image {int(np.isinf(scores).argmax())} of {count}")
        return scores


def function(*, path: str, name: str | None = None, scale: str = "as the function says") -> CallableScorer:
    """Return the scorer by a Python function (images, prompts) -> one number an image; it may leave out by NaN.

    `path` is `module:function`, or `file.py:function`; the score has the function's name unless `name` is given. The function is called
    with RGB images as PIL opens them. Raises ConfigError if there is no such function, and where it fails.
    """
    module_name, _, attribute = path.rpartition(":")
    called = getattr(_module(module_name, path), attribute, None)
    if not callable(called):
        raise ConfigError(f"scorer `function`: there is no function `{attribute}` in {module_name}")

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        try:
            return called(images, prompts)
        except Exception as error:
            raise ConfigError(f"the function {path} fails with {type(error).__name__}: {shortened(str(error))}") from error

    return CallableScorer(name or attribute, scale, score, f"the function {path}")


def _module(name: str, path: str) -> ModuleType:
    if not name:
        raise ConfigError(f"scorer `function`: `path` is {path!r}; expected module:function, or file.py:function")
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None:
            raise ImportError(f"no Python file at {name}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"scorer `function`: {name} cannot be imported ({type(error).__name__}: {shortened(str(error))})") from error
    return module
