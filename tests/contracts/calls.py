"""What a network was asked and answered, and the questions of a contract."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a network: its tensors by the names of its `forward`, and its output."""

    inputs: dict[str, Tensor]
    output: Tensor

    @property
    def x(self) -> Tensor:
        """What was denoised, in whatever shape the network takes it."""
        return next(self.inputs[name] for name in ("sample", "hidden_states", "x") if name in self.inputs)


def is_ragged(value: Any) -> bool:
    return isinstance(value, list) and isinstance(value[0], Tensor)


@contextlib.contextmanager
def recorded(network: nn.Module) -> Iterator[list[Call]]:
    """Give the list that fills with the calls of the block."""
    calls: list[Call] = []
    signature = inspect.signature(type(network).forward)

    def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given = signature.bind(module, *args, **named).arguments
        given |= {f"{name}.{key}": value for name, values in given.items() if isinstance(values, dict) for key, value in values.items()}
        # Z-Image takes and gives lists with an entry for each picture, whose prompts have lengths of their own.
        given = {name: pad_sequence(value, batch_first=True) if is_ragged(value) else value for name, value in given.items()}
        answer = torch.stack(output[0]) if isinstance(output[0], list) else output[0].clone()
        calls.append(Call({name: value.clone() for name, value in given.items() if isinstance(value, Tensor)}, answer))

    handle = network.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def assert_asked_alike(ours: Call, theirs: Call) -> None:
    """Fail unless both calls have the same tensors, one of which may stand for a row of equal ones."""
    assert ours.inputs.keys() == theirs.inputs.keys()
    for name, value in theirs.inputs.items():
        found = ours.inputs[name].to(torch.float32)
        torch.testing.assert_close(
            found, value.to(torch.float32).expand_as(found), rtol=1e-6, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@dataclass(frozen=True, slots=True)
class Stock:
    """How a family's stock pipeline calls its network with guidance."""

    guidance: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.5})
    branches: str = "together"  # unconditional first; or "together, prompts first"; "apart", prompts first as well; or "one", without
    latent: Callable[[Tensor, int, int], Tensor] = lambda x, height, width: x  # of so many rows and columns, of what is denoised
    output: Callable[[Tensor, int, int], Tensor] = lambda x, height, width: x

    def prompts(self, prompts: list[str]) -> list[list[str]]:
        """Return the prompts of the calls of one step."""
        empty = [""] * len(prompts)
        if self.branches == "one":
            return [prompts]
        if self.branches == "apart":
            return [prompts, empty]
        return [[*prompts, *empty] if "prompts first" in self.branches else [*empty, *prompts]]


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return the latent (N, C, H, W) whose 2x2 patches are the first rows of `tokens` (N, L, 4 C): torch's own pixel shuffle."""
    tokens = tokens[:, : height * width // 4]  # those of an input picture stand behind them
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2), 2)


def spread(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return the latent (N, C, H, W) whose places are the rows of `tokens` (N, H W, C)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


BOTH = {"true_cfg_scale": 2.0, "negative_prompt": ["", ""]}
# By family, or by pipeline where a family has several.
STOCK = {
    "flux": Stock({"guidance_scale": 3.5, **BOTH}, "apart", unpacked, unpacked),
    # Films of one picture, and the velocity from noise to picture.
    "z_image": Stock(branches="together, prompts first", latent=lambda x, _, __: x[:, :, 0], output=lambda x, _, __: -x[:, :, 0]),
    "qwen_image": Stock(BOTH, "apart", unpacked, unpacked),
    "flux_kontext": Stock({"guidance_scale": 3.5, **BOTH}, "apart", unpacked, unpacked),
    "qwen_image_edit": Stock(BOTH, "apart", unpacked, unpacked),
    "chroma": Stock({"guidance_scale": 3.5}, "apart", unpacked, unpacked),
    "lumina2": Stock({"guidance_scale": 3.5}, "apart", output=lambda x, _, __: -x),
    "cogview4": Stock({"guidance_scale": 3.5}, "apart"),
    "flux2": Stock({"guidance_scale": 3.5}, "apart", spread, spread),
    "Flux2Pipeline": Stock({"guidance_scale": 3.5}, "one", spread, spread),  # which is told the scale
    "ovis_image": Stock({"guidance_scale": 3.5}, "apart", unpacked, unpacked),
    "hidream": Stock(output=lambda x, _, __: -x),
    "krea2": Stock({"guidance_scale": 3.5}, "apart", unpacked, unpacked),
}


def stock_of(pipe: Any, family: str) -> Stock:
    """Return how a stock pipeline calls its network."""
    edm = Stock(output=lambda x, _, __: -x) if isinstance(pipe.scheduler, EDMDPMSolverMultistepScheduler) else None  # v of the other sign
    return edm or STOCK.get(type(pipe).__name__) or STOCK.get(family, Stock())
