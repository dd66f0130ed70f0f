"""Align image generators, and the language models that prompt them, with human preferences.

import diffalign

diffalign.align("assets/tiny-sd", "pairs.parquet", method="diffusion_dpo", output_dir="outputs/mine")
pipe = diffalign.load("outputs/mine")          # a stock diffusers pipeline with the result applied
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diffalign.core.version import __version__

if TYPE_CHECKING:
    from diffalign.core.errors import DiffalignError
    from diffalign.core.types import Scores
    from diffalign.data.records import Candidate, Record
    from diffalign.data.table import read_table, write_table
    from diffalign.infer.load import load
    from diffalign.methods import METHODS
    from diffalign.methods.config import TrainConfig
    from diffalign.models.diffusion.path import FlowPath, VPPath, advance, mix, split, target
    from diffalign.objectives import OBJECTIVES
    from diffalign.train.align import align

_HOMES = {
    "align": "diffalign.train.align",
    "TrainConfig": "diffalign.methods.config",
    "Candidate": "diffalign.data.records",
    "Record": "diffalign.data.records",
    "read_table": "diffalign.data.table",
    "write_table": "diffalign.data.table",
    "FlowPath": "diffalign.models.diffusion.path",
    "VPPath": "diffalign.models.diffusion.path",
    "advance": "diffalign.models.diffusion.path",
    "mix": "diffalign.models.diffusion.path",
    "split": "diffalign.models.diffusion.path",
    "target": "diffalign.models.diffusion.path",
    "DiffalignError": "diffalign.core.errors",
    "load": "diffalign.infer.load",
    "METHODS": "diffalign.methods",
    "OBJECTIVES": "diffalign.objectives",
    "Scores": "diffalign.core.types",
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
