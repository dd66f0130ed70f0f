"""Shared fixtures; every test runs offline and on the CPU."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.refusals import Refused, refusals

gc.disable()  # until all is imported: walking over what stays, again and again, is a sixth of what imports take
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Let diffusers' schedulers hand tensors to numpy 2, which warns of it until they stop (Euler of SDXL, DPM-Solver of PixArt).

    And let its Chroma build its positions as it does, of which it warns itself, and its ChatGLM compile functions as PyTorch no longer
    likes to.
    """
    config.addinivalue_line("filterwarnings", r"ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers")
    config.addinivalue_line("filterwarnings", r"ignore:`torch.jit.script` is deprecated:FutureWarning:torch\.jit")
    config.addinivalue_line(
        "filterwarnings", r"ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:diffusers\.schedulers"
    )


def pytest_collection_finish() -> None:
    """Take what imports have made out of the collector's sight, which walks through it whenever a pipeline has drawn."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Give it back, or extension modules report at the end that it was leaked."""
    gc.enable()
    gc.unfreeze()


@pytest.fixture(scope="session")
def micro_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion in diffusers layout."""
    from tests.micro import write_micro_sd

    return write_micro_sd(tmp_path_factory.mktemp("micro") / "sd")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four labelled pairs in Pick-a-Pic's columns."""
    from tests.micro import write_pairs

    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


@pytest.fixture(scope="session")
def refused() -> Iterator[Refused]:
    """A function that returns the one line that the command line refuses its arguments with, before it imports torch."""
    with refusals() as refuse:
        yield refuse


@pytest.fixture(autouse=True)
def whole_floats():
    """Undo what every entry point does for its process: hypothesis, in a later test, would miss the denormal numbers."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
