"""How far the times of a flow model are shifted towards noise by the size of a picture, as each family's stock pipeline computes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

STEPS = 50  # of the stock pipelines of FLUX.2, by which times are drawn in training


class Shift(Protocol):
    """A shift that depends on the size."""

    def of(self, height: int, width: int, steps: int = STEPS) -> float:
        """Return the shift of latents of so many rows and columns, for a solver of so many steps."""
        ...


@dataclass(frozen=True, slots=True)
class DynamicShift:
    """A shift that is exponential or linear in a number that grows linearly with the tokens."""

    few: int  # tokens, where the number is `low`
    many: int  # tokens, where it is `high`
    low: float
    high: float
    exponential: bool
    patch: int  # latent rows, and columns, in a token

    @classmethod
    def from_config(cls, config: Mapping[str, Any], patch: int) -> DynamicShift:
        """Return the shift of a diffusers flow scheduler's config."""
        return cls(
            few=config.get("base_image_seq_len", 256),
            many=config.get("max_image_seq_len", 4096),
            low=config.get("base_shift", 0.5),
            high=config.get("max_shift", 1.15),
            exponential=config.get("time_shift_type", "exponential") == "exponential",
            patch=patch,
        )

    def of(self, height: int, width: int, steps: int = STEPS) -> float:  # noqa: ARG002  # the protocol's
        """Return the shift of latents of so many rows and columns."""
        tokens = (height // self.patch) * (width // self.patch)
        number = self.low + (self.high - self.low) * (tokens - self.few) / (self.many - self.few)
        return math.exp(number) if self.exponential else number


@dataclass(frozen=True, slots=True)
class RootShift:
    """CogView4's shift, which grows with the square root of the tokens."""

    few: int  # tokens by which they are counted
    low: float  # the shift of none
    high: float  # what `few` of them add
    patch: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any], patch: int) -> RootShift:
        """Return the shift of a diffusers flow scheduler's config."""
        return cls(config.get("base_image_seq_len", 256), config.get("base_shift", 0.25), config.get("max_shift", 0.75), patch)

    def of(self, height: int, width: int, steps: int = STEPS) -> float:  # noqa: ARG002  # the protocol's
        """Return the shift of latents of so many rows and columns."""
        tokens = (height // self.patch) * (width // self.patch)
        return self.low + self.high * math.sqrt(tokens / self.few)


@dataclass(frozen=True, slots=True)
class EmpiricalShift:
    """FLUX.2's shift, which was fitted to tokens and steps: its logarithm is linear in both, and above 4300 tokens in those alone."""

    patch: int = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any], patch: int) -> EmpiricalShift:  # noqa: ARG003  # its numbers stand in the pipeline
        """Return the shift."""
        return cls(patch)

    def of(self, height: int, width: int, steps: int = STEPS) -> float:
        """Return the shift of latents of so many rows and columns, for a solver of so many steps."""
        tokens = (height // self.patch) * (width // self.patch)
        many = 0.00016927 * tokens + 0.45666666  # of 200 steps
        few = 8.73809524e-05 * tokens + 1.89833333  # of 10
        return math.exp(many if tokens > 4300 else many + (200.0 - steps) / 190.0 * (few - many))
