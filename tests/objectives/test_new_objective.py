"""What a new pairwise objective costs: a function, a table line, a config and a golden entry; the contract tests then find it."""

from __future__ import annotations

import inspect
import json

import pytest
from safetensors.torch import load_file

from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.objectives import OBJECTIVES, margin
from diffalign.objectives.base import Facts, Objective, Source, log_ratios, pairwise, weighted
from diffalign.objectives.implicit_reward import times_beta
from diffalign.train.align import train
from tests.each import each
from tests.golden import make_objectives
from tests.golden import test_objectives as golden
from tests.objectives import test_contract as contract

CONTRACTS = {name: test.of_one for name, test in vars(contract).items() if hasattr(test, "of_one")}
SOURCE = Source("variant", ("golden",))


@weighted
def made_up(s, *, beta):
    """Return p relu(1 - z)^2 + (1-p) relu(1 + z)^2 with z = beta * margin of the log-ratios."""
    return pairwise(s, beta * margin(log_ratios(s)), lambda z: (1.0 - z).relu() ** 2)


def restated(policy, reference, prob, *, beta):
    """The same in numpy, for the golden entry."""
    z = beta * make_objectives.margin(policy, reference)
    return prob * make_objectives.relu(1 - z) ** 2 + (1 - prob) * make_objectives.relu(1 + z) ** 2


@pytest.fixture(autouse=True)
def _table_line(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "made_up", Objective(made_up, Facts(), times_beta, SOURCE))


@each(name for name, test in CONTRACTS.items() if "name" in inspect.signature(test).parameters)
def test_every_contract_can_be_asked_of_it(test):
    CONTRACTS[test](name="made_up")


def test_a_contract_that_does_not_hold_is_noticed(monkeypatch):
    deaf = Objective(lambda s, *, beta: -beta * margin(s.log_ratio), Facts(), times_beta, SOURCE)  # to the label
    monkeypatch.setitem(OBJECTIVES, "made_up", deaf)
    with pytest.raises(AssertionError):
        CONTRACTS["test_a_tie_has_no_gradient_where_the_log_ratios_are_equal"](name="made_up")


def test_a_missing_golden_entry_is_named():
    with pytest.raises(pytest.fail.Exception, match="no golden entry for the objective `made_up`"):
        golden.test_losses_and_gradients_are_the_golden_ones(name="made_up")


def test_its_golden_entry_is_all_that_the_golden_test_needs(monkeypatch):
    monkeypatch.setitem(golden.ENTRIES, "made_up", make_objectives.entry(restated, {"beta": 1.3}))
    golden.test_losses_and_gradients_are_the_golden_ones(name="made_up")


def test_a_config_that_names_it_trains(micro_sd, pairs_file, tmp_path):
    file = tmp_path / "made_up.yaml"
    file.write_text(f"""
pretrained_model_name_or_path: {micro_sd}
dataset_name: {pairs_file}
output_dir: {tmp_path / "run"}
objective: {{made_up: {{beta: 3}}}}
max_train_steps: 2
train_batch_size: 4
learning_rate: 1e-3
rank: 2
""")
    folder = train(from_mapping(load_yaml(file), str(file)))
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert len(log) == 2
    assert log[0]["loss"] == pytest.approx(1.0, abs=1e-5)  # z = 0: relu(1 - 0)^2
    assert log[1]["rewards/chosen"] == pytest.approx(3.0 * log[1]["log_ratio/chosen"], rel=1e-5)  # of the same table line
    weights = load_file(folder / "pytorch_lora_weights.safetensors")
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
