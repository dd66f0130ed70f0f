"""Personalised training on every family: it begins at the base, moves the branch and the encoder alone, and draws users apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffalign.data.importing import import_dataset
from diffalign.data.sampler import loader, sample_generator
from diffalign.infer.preview import USERS
from diffalign.infer.preview import sheet as drawn_sheet
from diffalign.methods.builders import image as build
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.train.step import preference_step
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.infer.user_runs import write_votes
from tests.micro_models import SIDE, write_micro

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart")
EXACT = ("sd", "sdxl", "flux")  # where a new branch adds exactly nothing
NAMES = ("ann", "bob", "cy", "dan", "eve")
PAIRS = {"pairs": {"tokens": 2, "width": 8, "hidden": 8, "max_shots": 2, "fit_steps": 2, "fit_batch": 4}}
# Its gradient is rounding noise: a last bias of the images cancels between the two of a pair.
CANCELS = "user_encoder.image.2.bias"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def table(files):
    """The choices of five users, three each."""
    return import_dataset(str(write_votes(files / "votes.parquet", NAMES, each=3)), files / "table").path


@pytest.fixture
def config(files, table, tmp_path):
    """A function that gives the config of a run on a family."""

    def make(family, **values):
        folder = files / family
        model = folder if folder.is_dir() else write_micro(family, folder)
        options = {"max_sequence_length": 16} if family in ("sd3", "flux", "pixart") else {}
        return checked(
            TrainConfig(
                **{
                    "pretrained_model_name_or_path": str(model),
                    "dataset_name": str(table),
                    "output_dir": str(tmp_path / "run"),
                    "method": "ppd",
                    "user_encoder": PAIRS,
                    "max_train_steps": 3,
                    "train_batch_size": 5,
                    "resolution": SIDE,
                    "learning_rate": 1e-2,
                    "adam_weight_decay": 0.0,  # which would move what learns nothing
                    **options,
                    **values,
                }
            )
        )

    return make


def trainer_of(config):
    return trainer_for(config)


def steps(trainer, count):
    """Take so many steps and return what each says."""
    batches = loader(trainer.parts.pairs, trainer.sampler, trainer.step, trainer.step + count)
    facts = []
    for _ in range(count):
        facts.append(trainer.optimizer_step(batches))
        trainer.step += 1
    return facts


def batch_of(trainer):
    """Return a batch of a record of each user, and its generators."""
    positions = [own[0] for own in trainer.parts.pairs.users.positions]
    rows = [trainer.parts.pairs[int(position), 0] for position in positions]
    return trainer.parts.pairs.to_batch(rows), [sample_generator(0, number) for number in range(len(rows))]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_branch_and_the_encoder_alone_move(config, family):
    trainer = trainer_of(config(family))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trained = {name for name, parameter in trainer.network.named_parameters() if parameter.requires_grad}
    facts = steps(trainer, 3)
    assert all(math.isfinite(value) for row in facts for value in row.values())
    moved = {name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved | {CANCELS} == trained | {CANCELS}
    assert any(name.startswith("user_encoder.head") for name in moved)
    own = ("user_encoder.", "user_projection.", "encoder_hid_proj.", "image_proj.")
    assert [name for name in moved if not name.startswith(own) and ".processor." not in name] == []


@pytest.mark.parametrize("family", EXACT)
def test_training_begins_at_ln_2_to_the_bit(config, family):
    (facts,) = steps(trainer_of(config(family)), 1)
    assert facts["loss"] == pytest.approx(math.log(2.0), abs=1e-7)
    assert facts["log_ratio/chosen"] == facts["log_ratio/rejected"] == 0.0


def test_training_begins_near_ln_2_on_sd3_whose_new_branch_is_almost_silent(config):
    (facts,) = steps(trainer_of(config("sd3")), 1)
    assert facts["loss"] == pytest.approx(math.log(2.0), abs=1e-4)


def test_pixart_hears_empty_words_of_a_user_at_first_and_of_nobody_none(config):
    """Words of a user take some of the attention, though a new branch says nothing by them; those of nobody are masked."""
    (known,) = steps(trainer_of(config("pixart", user_dropout=0.0)), 1)
    assert abs(known["log_ratio/chosen"]) > 1e-6
    (nobody,) = steps(trainer_of(config("pixart", user_dropout=1.0 - 1e-9)), 1)
    assert nobody["log_ratio/chosen"] == pytest.approx(0.0, abs=1e-7)
    assert nobody["loss"] == pytest.approx(math.log(2.0), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_base_model_whoever_asks(config, family):
    own = config(family, max_train_steps=2, user_dropout=0.0)
    trainer = trainer_of(own)
    steps(trainer, 2)
    batch, generators = batch_of(trainer)
    with torch.no_grad():
        query = trainer.parts.likelihood.prepare(trainer.network, batch, generators)
        policy = trainer.parts.likelihood.score(trainer.network.eval(), query)
        base = build.backbone(own, recipe_of(own), torch.device("cpu"))
        plain = DiffusionLikelihood(base.path, base.predict, recipe_of(own).trajectory)
        expected = plain.score(base.denoiser, query)
    assert torch.equal(trainer.parts.reference.score(trainer.parts.likelihood, query), expected)
    assert (policy - expected).abs().max() > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("switch", ["gradient_checkpointing", "sequential_candidates"])
def test_what_saves_memory_keeps_the_gradient(config, family, switch):
    gradients = []
    for options in ({}, {switch: True}):
        trainer = trainer_of(config(family, beta=10.0, user_dropout=0.3, **options))
        generator = torch.Generator().manual_seed(1)
        for parameter in trainer.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        batch, generators = batch_of(trainer)
        sequential = trainer.config.sequential_candidates
        loss, _ = preference_step(trainer.parts, trainer.policy, batch, generators, trainer._driving, sequential=sequential)
        loss.backward()
        gradients.append({name: p.grad for name, p in trainer.network.named_parameters() if p.grad is not None})
    plain, saved = gradients
    assert plain.keys() == saved.keys()
    assert any(name.startswith("user_encoder.") and gradient.abs().max() > 1e-5 for name, gradient in plain.items())
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch, of the norms of queries in bfloat16
def test_in_half_precision_users_are_read_in_single_and_drawn(config, family):
    own = config(family, mixed_precision="bf16", validation_prompts=["a star"])
    trainer = trainer_of(own)
    facts = steps(trainer, 2)
    assert all(math.isfinite(value) for row in facts for value in row.values())
    assert {parameter.dtype for parameter in trainer.parameters} == {torch.float32}
    model, (batch, _) = trainer.parts.backbone, batch_of(trainer)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            asked = model._tokens(batch.condition, len(NAMES))
        assert torch.equal(asked, trainer.network.user_encoder(batch.condition, len(NAMES)))
    trainer.network.eval()
    assert drawn_sheet(trainer.parts, own, "draw").size == (SIDE + 2, (1 + USERS) * (SIDE + 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sheet_shows_the_base_to_nobody_and_each_user_a_row_of_their_own(config, family):
    own = config(family, validation_prompts=["a star", "a red heart"])
    trainer = trainer_of(own)
    steps(trainer, 3)
    trainer.network.eval()
    sheet = np.asarray(drawn_sheet(trainer.parts, own, "draw"))
    side = SIDE + 2
    assert sheet.shape == ((1 + USERS) * side, 2 * side, 3)
    rows = [sheet[place * side : (place + 1) * side] for place in range(1 + USERS)]
    plain = replace(own, method="diffusion_dpo", user_encoder=None)
    base = np.asarray(drawn_sheet(trainer_of(plain).parts, plain, "draw"))
    np.testing.assert_array_equal(rows[0], base[:side])
    assert all(np.abs(one.astype(int) - other).max() > 0 for one, other in itertools.pairwise(rows))
