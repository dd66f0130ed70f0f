"""The noise that half precision brings into margins: computed in float32 of the same weights, and reported where it matters."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffalign.train.precision import MOST, NOISE, Exact, moved, noise
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.train.configs import small_config

CPU = torch.device("cpu")


@pytest.fixture
def config(micro_sd, pairs_file, tmp_path):
    own = small_config(micro_sd, pairs_file, tmp_path / "run", max_train_steps=1, train_batch_size=8, learning_rate=1e-3)
    return replace(own, mixed_precision="bf16", beta=5000.0)


def test_a_sum_that_bfloat16_rounds_away_is_there_in_float32():
    layer = nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    layer.weight.data.copy_(torch.tensor([[1.0, 2**-9]]))  # 1 + 2^-9 lies a quarter of the way to bfloat16's next number, 1 + 2^-7
    ones = torch.ones(1, 2, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(ones).item() == 1.0
        with Exact(CPU):
            assert layer(ones).item() == layer(ones.float()).to(torch.bfloat16).item() == 1.0 + 2**-9


def test_weights_that_are_moved_are_back_to_the_bit_also_on_an_error():
    layer = nn.Linear(3, 2)
    before = copy.deepcopy(layer.state_dict())
    changes = []

    def fail():
        with moved(list(layer.parameters()), 0.125, torch.Generator().manual_seed(0)):
            changes.extend((value - before[name]).flatten() for name, value in layer.state_dict().items())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    change = torch.cat(changes)
    assert change.abs() == pytest.approx(0.125, abs=1e-6)
    assert change.min() < 0 < change.max()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_noise_is_beta_times_the_root_mean_square_of_what_rounding_adds(config, monkeypatch):
    trainer = trainer_for(config)
    # What margins are in half precision, and in float32; by hand.
    margins = iter([torch.tensor([0.003, 0.0]), torch.tensor([0.001, 0.001])] * 4)
    monkeypatch.setattr("diffalign.train.precision._margins", lambda *_: next(margins))
    # errors 0.002 and -0.001: 5000 sqrt((4e-6 + 1e-6) / 2)
    assert noise(trainer, trainer._driving)[NOISE] == pytest.approx(5000 * 2.5e-6**0.5)


def test_exact_scores_are_those_of_the_weights_in_float32(config):
    trainer = trainer_for(config)
    batch = trainer.parts.pairs.to_batch([trainer.parts.pairs[i, 0] for i in range(4)])
    likelihood, network = trainer.parts.likelihood, trainer.network
    query = likelihood.prepare(network, batch, torch.Generator().manual_seed(0))
    wide = trainer_for(replace(config, mixed_precision="no"))
    wide.network.load_state_dict({name: value.float() for name, value in network.state_dict().items()})
    with torch.no_grad():
        rounded, expected = likelihood.score(network, query), wide.parts.likelihood.score(wide.network, query)
        with Exact(CPU):
            exact = likelihood.score(network, query)
    assert (exact - expected).abs().max() < 1e-6 < 1e-5 < (rounded - expected).abs().max()


def test_a_large_beta_in_bfloat16_is_warned_of_in_one_sentence_and_stands_in_log_and_run(config, caplog):
    with caplog.at_level(logging.INFO):
        folder = trainer_for(checked(config)).fit()
    (row,) = (json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines())
    found = row[NOISE]
    assert found > MOST
    assert json.loads((folder / "run.json").read_text())[NOISE] == found
    (warning,) = (record.getMessage() for record in caplog.records if "noise of the margin" in record.getMessage())
    assert f"{found:.2g}" in warning
    assert "residual_in_fp32" in warning


@pytest.mark.parametrize("changes", [{"beta": 50.0}, {"mixed_precision": "no"}], ids=str)
def test_small_betas_are_not_warned_of_and_float32_is_not_measured(config, changes, caplog):
    trainer = trainer_for(replace(config, **changes))
    with caplog.at_level(logging.WARNING):
        found = noise(trainer, trainer._driving)
    assert not [record for record in caplog.records if "noise of the margin" in record.getMessage()]
    assert found == {} if "mixed_precision" in changes else 0 < found[NOISE] < MOST
