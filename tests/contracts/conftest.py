"""A micro model of every form, written once, and its backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.backbones.table import load_backbone
from tests.edit_models import small_references
from tests.micro_models import MODELS, SIDE, TOKENS, write_micro

Folder = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def small() -> Iterator[None]:
    """Input pictures are read small."""
    with small_references():
        yield


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a model of `MODELS` by name."""
    root = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        kind, options = MODELS[name]
        return root / name if (root / name).is_dir() else write_micro(kind, root / name, **options)

    return find


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a model; every test that asks for it runs for all of them."""
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, folder_of: Folder) -> Path:
    """The folder of that model."""
    return folder_of(name)


@pytest.fixture(scope="module")
def backbone(name: str, folder: Path) -> Pretrained:
    """That model behind the interface, loaded once for all tests that leave it as it is; a guidance-distilled one is told 3.5."""
    return load_backbone(str(folder), torch.device("cpu"), settings=BackboneSettings(SIDE, TOKENS.get(name), guidance_scale=3.5))


@pytest.fixture
def own_backbone(backbone: Pretrained) -> Pretrained:
    """A copy for a test that changes it."""
    return copy.deepcopy(backbone)
