"""Two processes train the batch that one process would: same data, same draws, same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffalign.data.table import read_table
from diffalign.methods.config import TrainConfig
from diffalign.train.align import run
from tests.micro import write_pairs
from tests.processes import launch, weights

CASES = {
    "diffusion_dpo": {"method": "diffusion_dpo"},
    "inpo": {"method": "inpo", "trajectory": {"ddim_inversion": {"steps": 3, "eta": 0.1, "driver": "policy"}}},
    "ppd": {"method": "ppd", "user_encoder": {"pairs": {"fit_steps": 2, "fit_batch": 8}}},
}
IN_TURN = CASES["diffusion_dpo"] | {"sequential_candidates": True}
PROMPTS = [f"a {color} {shape}" for shape in ("star", "heart", "ring") for color in ("red", "green", "blue")]
DRAWN = {"prompts": PROMPTS, "images_per_prompt": 2, "num_inference_steps": 1, "scorers": [{"taste": {"name": "bright_background"}}]}
ONLINE = {"method": "rank_dpo", "dataset_name": "", "reference": "old_policy", "prompts": PROMPTS, "scorers": DRAWN["scorers"]}
ONLINE |= {"images_per_prompt": 3, "prompts_per_turn": 4, "updates_per_turn": 1, "num_inference_steps": 1}
ONLINE |= {"scorers": [*DRAWN["scorers"], {"taste": {"name": "warm"}}], "combine": {"gradient": {"rate": 1.0}}}
# A tree of four pictures a prompt; each update trains both kept steps of every tree.
TREES = ONLINE | {"method": "diffusion_dpo", "beta": None, "objective": {"clipped_ratio": {"low": 0.5}}, "reference": "none"}
TREES |= {"rollout": {"branch": {"splits": [0, 1]}}, "num_inference_steps": 3, "images_per_prompt": 4, "prompts_per_turn": 4}
TREES |= {"transforms": [{"list_of": {"score": "advantage"}}], "learning_rate": 0.1}
# Weights spread over the processes, a reference by the adapter's switch, and one of its own.
SPREAD = {
    "dora": {"train_method": "dora", "use_ema": True, "ema_decay": 0.5, "validation_prompts": ["a red star"], "lr_scheduler": "linear"},
    "full": {"train_method": "full", "learning_rate": 0.1, "gradient_checkpointing": True},
}
ROUNDS = CASES["diffusion_dpo"] | {"rounds": 2, "generate": DRAWN}  # the first trains on the pairs


@pytest.fixture(scope="module")
def options(micro_sd, tmp_path_factory):
    """The settings of every run here, on pairs of four users."""
    voted = write_pairs(tmp_path_factory.mktemp("voted") / "pairs.parquet", users=4)
    given = {"pretrained_model_name_or_path": str(micro_sd), "dataset_name": str(voted), "gradient_accumulation_steps": 2, "rank": 2}
    # The step is linear in the gradient and beta small: see test_train.py.
    return given | {"max_train_steps": 3, "checkpointing_steps": 2, "beta": 10.0, "adam_epsilon": 1.0, "learning_rate": 1.0}


@pytest.fixture(scope="module")
def two(options, tmp_path_factory):
    """The folder with every run in two processes, each of which takes two pairs at a time."""
    folder = tmp_path_factory.mktemp("two")
    cases = CASES | {"in turn": IN_TURN, "online": ONLINE, "trees": TREES}
    cases |= {f"spread {name}": case | {"spread": True} for name, case in SPREAD.items()}
    for name, case in SPREAD.items():
        alone = folder / f"alone {name}"
        run(TrainConfig(**(options | case | {"train_batch_size": 4, "output_dir": str(alone)})))
        shutil.copytree(alone / "checkpoint-2", folder / f"resumed {name}" / "checkpoint-2")
        cases[f"resumed {name}"] = case | {"spread": True, "resume_from_checkpoint": "latest"}
    shutil.copytree(folder / "alone dora" / "checkpoint-2", folder / "resumed" / "checkpoint-2")
    cases["resumed"] = SPREAD["dora"] | {"resume_from_checkpoint": "latest"}
    cases["rounds"] = ROUNDS
    launch(folder, [options | case | {"train_batch_size": 2, "output_dir": str(folder / name)} for name, case in cases.items()])
    return folder


def farthest(options, one, two, case):
    """Train in this process, with four pairs at a time, and return how far the weights are from those in `two`."""
    run(TrainConfig(**(options | case | {"train_batch_size": 4, "output_dir": str(one)})))
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    assert max(value.abs().max().item() for name, value in ours.items() if "lora_B" in name or "proj.3.weight" in name) > 1e-3
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def apart(one, two):
    """Return how far the weights of two runs, of an adapter or of the whole network, are from each other."""
    ours, theirs = (weights(folder) or load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (one, two))
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def last(folder):
    """Return the last step of a run, its learning rate, and its loss, by which its records are told from others."""
    row = json.loads((folder / "train_log.jsonl").read_text().splitlines()[-1])
    return row["step"], row["lr"], pytest.approx(row["loss"], abs=1e-6)


@pytest.mark.parametrize("name", SPREAD)
def test_weights_spread_over_two_processes_are_those_of_one_and_each_goes_on_from_the_others_checkpoint(options, two, tmp_path, name):
    alone, spread = two / f"alone {name}", two / f"spread {name}"
    assert apart(alone, spread) <= 1e-6
    assert apart(alone, two / f"resumed {name}") <= 1e-6
    if name != "full":  # whose checkpoints have no second copy of its weights; this one is of the moving average
        assert apart(alone / "checkpoint-2", spread / "checkpoint-2") <= 1e-6
    assert len(list((spread / "checkpoint-2" / "shares").iterdir())) == 2
    shutil.copytree(spread / "checkpoint-2", tmp_path / "checkpoint-2")
    whole = options | SPREAD[name] | {"train_batch_size": 4, "output_dir": str(tmp_path)}
    run(TrainConfig(**(whole | {"resume_from_checkpoint": "latest"})))
    assert apart(alone, tmp_path) <= 1e-6
    assert [last(folder) for folder in (spread, two / f"resumed {name}", tmp_path)] == 3 * [last(alone)]
    start = Path(options["pretrained_model_name_or_path"]) if name == "full" else spread / "checkpoint-2"
    assert apart(alone, start) > 1e-3


def test_two_whole_processes_go_on_from_the_checkpoint_of_one_and_one_from_theirs(options, two, tmp_path):
    assert apart(two / "alone dora", two / "resumed") <= 1e-6
    assert last(two / "resumed") == last(two / "alone dora")
    theirs = two / "diffusion_dpo"
    shutil.copytree(theirs / "checkpoint-2", tmp_path / "checkpoint-2")
    case = options | CASES["diffusion_dpo"] | {"train_batch_size": 4, "output_dir": str(tmp_path), "resume_from_checkpoint": "latest"}
    run(TrainConfig(**case))
    assert apart(theirs, tmp_path) <= 1e-6
    assert last(tmp_path) == last(theirs)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_weights_of_one(options, two, tmp_path, name):
    assert farthest(options, tmp_path / "one", two / name, CASES[name]) <= 1e-6
    assert (two / name / "checkpoint-2").is_dir()


def test_two_processes_in_turn_give_the_weights_of_one_at_once(options, two, tmp_path):
    assert farthest(options, tmp_path / "one", two / "in turn", CASES["diffusion_dpo"]) <= 1e-6


def test_two_processes_share_the_prompts_of_a_turn_and_learn_from_whole_groups(options, two, tmp_path):
    for name, case in (("online", ONLINE), ("trees", TREES)):
        assert farthest(options, tmp_path / name, two / name, case) <= 1e-6, name
        tables = [read_table(folder / "data") for folder in (two / name, tmp_path / name)]
        for one, other in zip(*tables, strict=True):
            assert (one.prompt, one.meta) == (other.prompt, other.meta), name
            assert [c.scores for c in one.candidates] == [pytest.approx(c.scores, abs=1e-6) for c in other.candidates], name


def test_two_processes_share_the_rounds_and_one_of_them_gathers_their_result(two):
    folder = two / "rounds"
    table, facts = read_table(folder / "round-2" / "data"), json.loads((folder / "run.json").read_text())
    assert [record.prompt for record in table] == PROMPTS  # in two parts, of which each process drew one
    assert [(known["records"], known["steps"]) for known in facts["rounds"]] == [(24, 3), (9, 3)]
    first, second, result, alone = map(weights, (folder / "round-1", folder / "round-2", folder, two / "diffusion_dpo"))
    assert max((first[name] - alone[name]).abs().max().item() for name in alone) == 0.0
    assert max((second[name] - first[name]).abs().max().item() for name in first) > 1e-4
    assert all(torch.equal(second[name], result[name]) for name in result)
