"""The memory that a dry run estimates is near what a run takes."""

from __future__ import annotations

import pytest
import torch

from diffalign.data.sampler import loader
from diffalign.methods.builders import dry_run
from diffalign.methods.builders.meta_model import encoding
from diffalign.methods.recipe import recipe_of
from diffalign.models.backbones.table import load_backbone
from diffalign.train.trainer import trainer_for
from scripts.prove_memory import torch_peak
from tests.micro import write_pairs
from tests.train.test_dry_run import config, outlined, sizes


def peak(own):
    """Return the largest number of bytes that lay in memory at once while a trainer was made and took two steps."""

    def steps():
        trainer = trainer_for(own)
        trainer._begin()
        batches = loader(trainer.parts.pairs, trainer.sampler, 0, 2, 0)
        for _ in range(2):  # the second one finds the optimizer's state there
            trainer.optimizer_step(batches)
            trainer.step += 1

    return torch_peak(steps)[1]


MEASURED = {
    "user": {"method": "ppd", "user_encoder": {"pairs": {"fit_steps": 2, "fit_batch": 4}}},
    "lora": {},
    "checkpointed": {"gradient_checkpointing": True},
    "in-turn": {"sequential_candidates": True},
    "bf16": {"mixed_precision": "bf16"},
    "full": {"train_method": "full", "train_batch_size": 4, "optimizer": "adafactor"},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of the pairs and of their cache."""
    folder = tmp_path_factory.mktemp("shared")
    write_pairs(folder / "pairs.parquet", count=16, side=72, users=4)
    for name in ("user", "lora", "bf16"):  # which keep features of pictures, latents, and latents in half precision
        trainer_for(measured(name, folder, folder / "run"))
    return folder


def measured(name, shared, output_dir):
    """Return the config of a case."""
    options = {"train_batch_size": 8, "max_train_steps": 3, "output_dir": str(output_dir), "cache_dir": str(shared / "cache")}
    return config("assets/tiny-sd", dataset_name=str(shared / "pairs.parquet"), **options | MEASURED[name])


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_near_what_a_run_takes(name, shared, tmp_path):
    own = measured(name, shared, tmp_path / "run")
    drawn = outlined(own)
    encoders = sum(p.numel() * 4 for part in ("vae", "text_encoder") for p in drawn.parts[part].parameters())  # on the CPU they stay
    estimate = encoders + sum(size for _, size in dry_run.memory(own, recipe_of(own), drawn))
    gradients = sizes(own)["gradients"] if name == "full" else 0  # come as activations go
    assert estimate - gradients == pytest.approx(peak(own), rel=0.08)


def test_what_the_vae_works_in_is_near_what_encoding_takes():
    model = load_backbone("assets/tiny-sd", torch.device("cpu"))
    side = 128
    count = model.encoded_at_once(side, side)
    pixels, noise = torch.zeros(count, 3, side, side), torch.zeros(count, *model.latent_shape(side, side))
    whole = torch_peak(lambda: model.encode_image(pixels, noise))[1]
    assert encoding(outlined(config("assets/tiny-sd")), (side, side)) == pytest.approx(whole, rel=0.08)
