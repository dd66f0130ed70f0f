"""Align image generators, and the language models that prompt them, with human preferences.

import diffalign

diffalign.align("assets/tiny-sd", "pairs.parquet", method="diffusion_dpo", output_dir="outputs/mine")
pipe = diffalign.load("outputs/mine")          # a stock diffusers pipeline with the result applied
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffalign.api import align
    from diffalign.config import TrainConfig
    from diffalign.data.records import Candidate, Record
    from diffalign.data.table import read_table, write_table
    from diffalign.diffusion.path import FlowPath, VPPath, advance, mix, split, target
    from diffalign.errors import DiffalignError
    from diffalign.infer.load import load
    from diffalign.methods import METHODS
    from diffalign.objectives import OBJECTIVES
    from diffalign.types import Scores

__version__ = "0.1.0"

_HOMES = {
    "align": "diffalign.api",
    "TrainConfig": "diffalign.config",
    "Candidate": "diffalign.data.records",
    "Record": "diffalign.data.records",
    "read_table": "diffalign.data.table",
    "write_table": "diffalign.data.table",
    "FlowPath": "diffalign.diffusion.path",
    "VPPath": "diffalign.diffusion.path",
    "advance": "diffalign.diffusion.path",
    "mix": "diffalign.diffusion.path",
    "split": "diffalign.diffusion.path",
    "target": "diffalign.diffusion.path",
    "DiffalignError": "diffalign.errors",
    "load": "diffalign.infer.load",
    "METHODS": "diffalign.methods",
    "OBJECTIVES": "diffalign.objectives",
    "Scores": "diffalign.types",
}

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "Candidate",
    "DiffalignError",
    "FlowPath",
    "Record",
    "Scores",
    "TrainConfig",
    "VPPath",
    "__version__",
    "advance",
    "align",
    "load",
    "mix",
    "read_table",
    "split",
    "target",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `diffalign` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
