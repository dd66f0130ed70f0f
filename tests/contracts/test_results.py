"""Three training steps on every form of model: what moves, and that stock libraries draw with the result what this package does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from peft import PeftModel

import diffalign
from diffalign.data.importing import import_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.edits import layout_at
from diffalign.train.trainer import Trainer, trainer_for
from tests.checked import checked
from tests.contracts.calls import recorded
from tests.edit_models import with_inputs
from tests.micro_models import FIRSTS, SIDE, is_idle, picture, stock

# An alpha other than the rank: a loader that loses it draws something else.
OPTIONS = {"max_train_steps": 3, "train_batch_size": 4, "learning_rate": 3e-2, "rank": 2, "lora_alpha": 6.0, "resolution": SIDE}


@pytest.fixture(scope="module")
def table(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs as a table, with another beside it for edit models."""
    path = tmp_path_factory.mktemp("table") / "pairs"
    with_inputs(import_dataset(str(pairs_file), path), path.with_name("edits"))
    return path


def trainer_of(folder: Path, table: Path, output: Path, **options: Any) -> Trainer:
    """Return the trainer of three steps on a model."""
    layout = layout_at(str(folder))
    data = table.with_name("edits") if layout is not None and layout.picture == "needed" else table
    paths = {"pretrained_model_name_or_path": str(folder), "dataset_name": str(data), "output_dir": str(output)}
    config = checked(TrainConfig(**{**paths, **OPTIONS, **options}))
    return trainer_for(config)


@pytest.fixture
def trainer(folder: Path, table: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """`trainer_of` with the model, the table and a folder of its own."""
    return functools.partial(trainer_of, folder, table, tmp_path / "run")


@pytest.fixture(scope="module")
def before_training(folder: Path) -> np.ndarray:
    """What the stock pipeline draws with the model as it is."""
    return picture(stock(folder))


def numbers(pipe):
    """Return a copy of every number of a pipeline, by part and name."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


def with_adapter(pipe, run):
    """Load an adapter as a user of stock libraries does; the pipelines of PixArt and Ovis-Image read none, peft does."""
    if not isinstance(pipe, LoraBaseMixin):
        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, run)
    else:
        pipe.load_lora_weights(run)
    return pipe


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch, of norms that Krea 2 keeps in float32
def test_training_moves_the_whole_adapter_and_nothing_else_and_stock_libraries_draw_it(folder, before_training, trainer):
    run = trainer()
    pipe = run.parts.backbone.pipeline()
    before = numbers(pipe)
    output = run.fit()
    after, drawn = numbers(pipe), picture(pipe)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if not is_idle(name)} == {name for name in before if "lora_" in name and not is_idle(name)}
    assert not any("lora_B" in name for name in moved if is_idle(name))
    assert any("lora_B" in name for name in moved)
    loaded = picture(with_adapter(stock(folder), output))
    assert np.abs(loaded - before_training).max() > 1e-3
    np.testing.assert_allclose(loaded, drawn, atol=1e-5)
    np.testing.assert_allclose(picture(diffalign.load(output)), loaded, atol=1e-6)
    half, plain = picture(diffalign.load(output, dtype=torch.bfloat16)), picture(stock(folder).to(torch.bfloat16))
    assert np.abs(half - loaded).mean() < 0.01
    assert np.abs(half - plain).max() > 0.0


@pytest.mark.parametrize("name", FIRSTS, indirect=True, scope="module")  # the other forms of a family have its network
def test_a_wholly_trained_denoiser_loads_in_the_stock_pipeline(folder, before_training, trainer):
    run = trainer(train_method="full", learning_rate=1e-2)
    backbone = run.parts.backbone
    before = numbers(backbone.pipeline())
    output = run.fit()
    after, drawn = numbers(backbone.pipeline()), picture(backbone.pipeline())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name.split(".")[0] for name in moved} == {backbone.component}
    pipe = stock(folder)
    setattr(pipe, backbone.component, type(backbone.denoiser).from_pretrained(output / backbone.component))
    np.testing.assert_allclose(picture(pipe), drawn, atol=1e-6)
    np.testing.assert_allclose(picture(diffalign.load(output)), drawn, atol=1e-6)
    assert np.abs(drawn - before_training).max() > 1e-3


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_sdxl_is_trained_with_each_images_own_size_and_crop(folder_of, table, tmp_path, cache):
    run = trainer_of(folder_of("sdxl"), table, tmp_path / "run", cache=cache, proportion_empty_prompts=0.5)
    with recorded(run.network) as calls:
        run.fit()
    told = {tuple(frame) for call in calls for frame in call.inputs["added_cond_kwargs.time_ids"].tolist()}
    # The drawings are 40 wide and 40 or 48 high. The latter become 38 high at 32 wide (48 * 0.8), of which the middle 32 are taken.
    assert told == {(40, 40, 0, 0, 32, 32), (48, 40, 3, 0, 32, 32)}
