"""Where the layers of a diffusers denoiser lie in the checkpoint layout that its model was published in.

The layouts are those that diffusers' single-file converters read, and for PixArt those of its release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Place:
    """Which rows of which module of the published layout hold one layer of the denoiser."""

    module: str
    part: int = 0  # which of the parts that lie on top of each other in the module
    shares: tuple[int, ...] = (1,)  # rows of each part, in any unit
    swapped: bool = False  # the two halves of its rows stand in the other order


# What a denoiser calls its blocks, what they are called in the published layout, and the layers of one.
Blocks = Mapping[str, tuple[str, Mapping[str, Place]]]


@dataclass(frozen=True, slots=True)
class Published:
    """The published layout of a family: layers of its numbered blocks, and those outside of them."""

    blocks: Blocks = field(default_factory=dict)
    outside: Mapping[str, Place] = field(default_factory=dict)
    as_diffusers: bool = False  # layers have diffusers' own names there

    def place(self, layer: str) -> Place | None:
        """Return where a layer lies, None if no place is known for it.

        >>> Published({"blocks": ("layers", plain(to_q="q"))}).place("blocks.3.to_q").module
        'layers.3.q'
        """
        if self.as_diffusers:
            return Place(layer)
        match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", layer)
        if match is None or match[1] not in self.blocks:
            return self.outside.get(layer)
        (published, layers), number = self.blocks[match[1]], match[2]
        target = layers.get(match[3])
        return None if target is None else Place(f"{published}.{number}.{target.module}", target.part, target.shares, target.swapped)


QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")  # of the prompt's side


def fused(module: str, *layers: str, shares: tuple[int, ...] = ()) -> dict[str, Place]:
    """Return the places of layers that lie on top of each other in one module."""
    return {layer: Place(module, part, shares or (1,) * len(layers)) for part, layer in enumerate(layers)}


def fused_qkv(module: str, attention: str, names: tuple[str, ...] = QKV) -> dict[str, Place]:
    """Return the places of an attention's projections, which are one module there."""
    return fused(module, *(f"{attention}.{name}" for name in names))


def plain(**modules: str) -> dict[str, Place]:
    """Return places of modules that are a layer of their own; a layer's dots are written as two underscores."""
    return {layer.replace("__", "."): Place(module) for layer, module in modules.items()}


def same(*layers: str) -> dict[str, Place]:
    """Return the places of layers that have the same name there."""
    return {layer: Place(layer) for layer in layers}


def embedder(layer: str, module: str, first: str = "0", second: str = "2") -> dict[str, Place]:
    """Return the places of a two-layer embedding: `mlp.0` and `mlp.2` there."""
    return {f"{layer}.linear_1": Place(f"{module}.{first}"), f"{layer}.linear_2": Place(f"{module}.{second}")}


def feed_forward(layer: str, first: str, second: str) -> dict[str, Place]:
    """Return the places of a diffusers feed-forward network."""
    return {f"{layer}.net.0.proj": Place(first), f"{layer}.net.2": Place(second)}


FINAL = {"norm_out.linear": Place("final_layer.adaLN_modulation.1", swapped=True), "proj_out": Place("final_layer.linear")}
CLOCK = "time_text_embed.timestep_embedder"
