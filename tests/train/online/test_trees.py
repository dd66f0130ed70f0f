"""Trees of rollouts (BranchGRPO): shared steps, advantages by depth, pruning, and a run that trains every step of a tree once."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffalign.cli.main import main
from diffalign.core.errors import ConfigError
from diffalign.data.table import read_table
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.methods.recipe import recipe_of
from diffalign.models.backbones.table import load_backbone
from diffalign.models.diffusion.path import FlowPath
from diffalign.models.diffusion.rollout import rollout
from diffalign.models.diffusion.rollout_plan import Branch
from diffalign.models.diffusion.sde import log_density, step
from diffalign.train import align as api
from diffalign.train.online import pairs as data
from diffalign.train.online.log import Log
from diffalign.train.online.loop import noisy_of, passes
from diffalign.train.online.trees import grown, trained_nodes
from tests.golden.online import close, golden
from tests.paths import CONFIGS
from tests.shades import add_scorer
from tests.train.online.scorers import Bright, online_config
from tests.train.online.test_rollout import POLICY, rolled

RELEASED = Branch(kind="dance", noise_scale=4.0)
TREE = POLICY | {"rollout": {"branch": {"splits": [0, 1]}}, "images_per_prompt": 4, "updates_per_turn": 4}


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)


def test_the_released_tree_has_16_leaves_218_steps_and_176_of_them_behind_the_last_split():
    plan = RELEASED.plan(0, 20)
    assert plan.leaves == 16
    assert sum(plan.widths[1:]) == 218
    assert sum(plan.widths[10:]) == 176
    assert plan.evaluations == 218 + 1 - 16  # every node but the leaves
    assert list(plan.kept) == list(range(19))
    assert (plan.kind, plan.level) == ("dance", 0.3)


@pytest.mark.parametrize("values", ["mean", "softmax"])
def test_advantages_are_the_golden_ones_of_each_depth(values):
    case = golden("branch")["split, walk, split"]
    branch = Branch(splits=(0, 2), values=values)
    plan = branch.plan(0, 4)  # the golden tree, and a last step without noise
    assert plan.parents[:9] == case["parent"]
    own = np.array(case["edge_log_prob"])[[[1, 3, 5], [1, 3, 6], [2, 4, 7], [2, 4, 8]]]
    learned = grown(branch, plan, np.array([case["leaf_rewards"]]), own[None])
    wanted = np.array(case[values]["advantage"])
    close(learned.advantage[0].T, wanted[[[1, 1, 2, 2], [3, 3, 4, 4], [5, 6, 7, 8]]])
    close(learned.leaves[0], wanted[5:])
    braked = branch.plan(0, 6, 3)  # whose last three steps have no noise
    close(grown(branch, braked, np.array([case["leaf_rewards"]]), own[None]).advantage, learned.advantage)
    assert learned.trained[0].T.tolist() == [[True, False, True, False], [True, False, True, False], [True] * 4]


def test_depths_are_pruned_by_a_list_that_moves_up_to_the_last_split_as_released():
    fixed, sliding = (Branch(depth_pruning=[15, 16, 17, 18], stay=stay) for stay in (None, 30))
    everything = set(range(1, 20))
    for branch, update, pruned in (
        (fixed, 900, {15, 16, 17, 18}),
        (sliding, 29, {15, 16, 17, 18}),
        (sliding, 30, {14, 15, 16, 17}),
        (sliding, 179, {10, 11, 12, 13}),
        (sliding, 900, {9, 10, 11, 12}),
    ):
        branch.check(20, 16)
        assert {k + 1 for k in branch.plan(update, 20).kept} == everything - pruned, (branch, update)
    assert list(Branch(splits=(2,)).plan(0, 5).kept) == [2, 3]  # a node alone has no advantage


def test_width_pruning_keeps_the_better_children_or_the_best_and_worst_leaves():
    rewards = np.array([[0.1, 0.2, 0.9, 0.3, 0.5, 0.4, 0.7, 0.6]])
    kept = {"best": [0, 1, 1, 0, 1, 0, 1, 0], "extremes": [1, 1, 1, 0, 0, 0, 1, 0]}
    for pruning, wanted in kept.items():
        branch = Branch(splits=(0, 1, 2), width_pruning=pruning)
        plan = branch.plan(0, 5)
        learned = grown(branch, plan, rewards, np.zeros((1, 8, 4)))
        assert learned.trained[0, :, 3].tolist() == list(map(bool, wanted)), pruning
        assert learned.trained[0, :, :3].sum(axis=0).tolist() == [2, 4, 8], pruning  # the last split itself is whole, as released
        assert trained_nodes(branch, plan) == [2, 4, 8, 4], pruning
        close(learned.leaves[0], (rewards[0] - rewards[0].mean()) / (rewards[0].std(ddof=1) + 1e-8))
    three = Branch(splits=(0,), children=3, width_pruning="best")
    learned = grown(three, three.plan(0, 3), rewards[:, :3], np.zeros((1, 3, 2)))
    assert learned.trained[0, :, 1].tolist() == [False, False, True]


def test_a_tree_with_a_picture_that_was_not_judged_teaches_nothing():
    plan = (branch := Branch(splits=(0, 1))).plan(0, 3)
    learned = grown(branch, plan, np.array([[0.1, np.nan, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]]), np.zeros((2, 4, 2)))
    assert not learned.advantage[0].any()
    assert learned.advantage[1].all()


def drawn(plan, seeds, calls=None):
    """Return a rollout of trees with a network of which x / 2 is the output."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def predict(x, t, *, empty=False):
        if calls is not None:
            calls.append(x.shape[0] * x.shape[1])
        return 0.5 * x

    noise = torch.stack([torch.randn(2, 3, 3, generator=generator) for generator in generators[:: plan.leaves]])
    return rollout(noise, predict, FlowPath(), generators, plan, w=0.0)


def test_nodes_share_their_steps_and_only_the_noise_of_splits_is_scaled():
    plan = Branch(kind="dance", splits=(0, 2), noise_scale=4.0).plan(0, 4)
    made = drawn(plan, range(8))
    assert torch.equal(made.x[:, 1:], made.x_to[:, :-1])
    for place, shared in ((0, 2), (1, 2), (2, 1)):
        nodes = made.x_to[:, place].view(2, 4 // shared, shared, -1)
        assert (nodes == nodes[:, :, :1]).all(), place
        assert not (nodes[:, 0] == nodes[:, 1]).any(), place
    sizes = []
    for place in range(3):
        t, to = made.t[:, place], made.to_t[:, place]
        mean, std = step(FlowPath(), made.x[:, None, place], 0.5 * made.x[:, None, place], t, to, "dance", 0.3)
        torch.testing.assert_close(mean[:, 0], made.mean[:, place])
        sizes.append(float(((made.x_to[:, place] - made.mean[:, place]) / std.view(-1, 1, 1, 1)).std()))
        torch.testing.assert_close(made.log_prob[:, place], log_density(made.x_to[:, None, place], mean, std)[:, 0])
    assert 3.0 < sizes[0] < 5.0
    assert 0.7 < sizes[1] < 1.3
    assert 3.0 < sizes[2] < 5.0


def test_a_tree_is_that_of_its_pictures_seeds_whatever_is_drawn_beside_it_and_asks_once_a_node():
    plan, calls = Branch(splits=(0, 2)).plan(0, 4), []
    beside, alone = drawn(plan, range(8), calls), drawn(plan, range(4, 8))
    assert torch.equal(beside.latents[4:], alone.latents)
    assert torch.equal(beside.x_to[4:], alone.x_to)
    assert calls == [2 * 1, 2 * 2, 2 * 2, 2 * 4]  # the nodes of a depth at once
    assert sum(calls) == 2 * plan.evaluations


def test_a_run_trains_each_step_of_a_tree_once_with_the_advantage_of_its_node(micro_sd, tmp_path, monkeypatch):
    batches, lines = [], []
    to_batch, written = data.TurnImages.to_batch, Log.write

    def watched(self, rows):
        batches.append(to_batch(self, rows))
        return batches[-1]

    def kept(self, turn, records, tensors, **manifest):
        lines.append((records, tensors))
        written(self, turn, records, tensors, **manifest)

    monkeypatch.setattr(data.TurnImages, "to_batch", watched)
    monkeypatch.setattr(Log, "write", kept)
    folder = api.train(online_config(micro_sd, tmp_path / "run", **(TREE | {"updates_per_turn": 2, "max_train_steps": 2})))
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert all(row["grad_norm"] > 0.0 for row in rows)
    ((records, tensors),) = lines
    rewards = np.array([[c.scores["reward"] for c in record.candidates] for record in records])
    leaf = (rewards - rewards.mean(axis=1, keepdims=True)) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-8)
    inner = np.sign(rewards[:, :2].sum(axis=1) - rewards[:, 2:].sum(axis=1))[:, None] * [1, 1, -1, -1] / np.sqrt(2.0)
    np.testing.assert_allclose(tensors["advantage"], np.stack([inner, leaf], axis=2), atol=1e-4)
    np.testing.assert_allclose([[c.scores["advantage"] for c in record.candidates] for record in records], leaf, atol=1e-6)
    assert sorted(batch.x0.shape[1] for batch in batches[1:]) == [2, 4]  # the first one is replayed, to check its ratio
    for batch in batches:
        nodes = batch.x0.shape[1]
        assert len(torch.unique(batch.steps.x_to.flatten(0, 1), dim=0)) == 2 * nodes  # none of them twice
        torch.testing.assert_close(batch.labels.weight, torch.full((2,), nodes / 3.0))  # so a step counts alike, whatever its depth
        assert batch.steps.advantage.abs().min() > 0.0


def test_a_run_of_trees_goes_on_within_a_turn_to_the_same_bits(micro_sd, tmp_path):
    config = online_config(micro_sd, tmp_path / "whole", **TREE)
    whole, part = api.train(config), replace(config, output_dir=str(tmp_path / "part"), max_train_steps=3)
    api.train(part)
    api.train(replace(part, max_train_steps=4, resume_from_checkpoint="latest"))
    assert (tmp_path / "part" / "train_log.jsonl").read_text() == (whole / "train_log.jsonl").read_text()
    assert [record.meta for record in read_table(whole / "data")] == [record.meta for record in read_table(tmp_path / "part" / "data")]


def test_a_dry_run_counts_the_passes_of_trees(micro_sd, tmp_path, capsys):
    flags = ["--prompts", "a star", "a ring", "--scorers", "bright", "--images_per_prompt", "4", "--prompts_per_turn", "2"]
    flags += ["--rollout", "{branch: {splits: [0, 1]}}", "--objective", "{clipped_ratio: {low: 0.001}}", "--reference", "none"]
    flags += [
        "--transforms",
        "[{list_of: {score: advantage}}]",
        "--train_batch_size",
        "2",
        "--updates_per_turn",
        "4",
        "--max_train_steps",
        "8",
    ]
    flags += ["--num_inference_steps", "3", "--sample_guidance_scale", "4", "--dry_run", "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--pretrained_model_name_or_path", str(micro_sd), *flags]) == 0
    shown = capsys.readouterr().out
    assert "8 images of 3 steps, 28 passes" in shown  # 2 prompts x (1 + 2 + 4) nodes x 2 for guidance
    assert "4 updates on 24 latents" in shown  # 2 passes x 2 prompts x (2 + 4) steps
    assert "56 passes to draw them" in shown


def test_every_recipe_with_a_rollout_trains_each_kept_step_equally_often():
    files = [file for file in sorted(CONFIGS.glob("*grpo_*.yaml")) if "rollout" in load_yaml(str(file))]
    assert {file.stem for file in files} >= {
        f"{method}_{model}" for method in ("grpo", "branch_grpo") for model in ("sd15", "sdxl", "sd3", "flux")
    }
    for file in files:
        config = from_mapping(load_yaml(str(file)), file.name)
        noisy = noisy_of(config, recipe_of(config))  # which refuses another number
        for turn in (0, 20, 1000):  # nor does the number change as windows move on
            plan = noisy.plan(turn * config.updates_per_turn, config.num_inference_steps)
            assert passes(config) % len(plan.kept) == 0, (file.stem, turn)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_per_prompt": 8}, "`images_per_prompt` is 8, .* 2 x 2 = 4 leaves"),
        ({"rollout": {"branch": {"splits": [0, 2]}}}, r"`splits` is \[0, 2\]; .* from 0 to 1"),
        ({"rollout": {"branch": {"splits": [1, 0]}}}, r"`splits` is \[1, 0\]"),
        ({"rollout": {"branch": {"splits": [0, 1], "children": [4]}}}, r"`children` is \[4\] for 2 splits"),
        ({"rollout": {"branch": {"splits": [0], "children": 1}}}, r"`children` is \[1\] for 1 splits"),
        ({"rollout": {"branch": {"splits": [0, 1], "noise_scale": 0.0}}}, "noise_scale 0.0"),
        ({"rollout": {"branch": {"splits": [0, 1], "kind": "ode"}}}, "`kind` is 'ode'"),
        ({"rollout": {"branch": {"splits": [0, 1], "depth_pruning": [3]}}}, r"`depth_pruning` is \[3\]; .* from 1 to 2"),
        ({"rollout": {"branch": {"splits": [0, 1], "depth_pruning": [1, 2]}}}, "no step to train"),
        ({"rollout": {"branch": {"splits": [0, 1], "depth_pruning": [1], "stay": 2, "stop_depth": 2}}}, "`stop_depth` 2"),
        ({"rollout": {"branch": {"splits": [0, 1], "stay": 2}}}, "`stay` is 2"),
        ({"rollout": {"branch": {"splits": [0, 1], "kind": "dance"}}}, "dance is a sampler of flow models"),
        ({"rollout": "flow_sde"}, "flow_sde is a sampler of flow models"),
        ({"advantages": {"spread": "group"}}, "`advantages` compares the pictures"),
        ({"transforms": [{"pairs": {"how": "best_worst"}}, "orient"]}, "`transforms`"),
        ({"updates_per_turn": 3}, "keeps 2 steps, .* 3 times"),
        ({"train_batch_size": 3, "prompts_per_turn": 1, "updates_per_turn": 2}, "a multiple of `train_batch_size`, 3"),
    ],
)
def test_trees_that_cannot_be_meant_are_refused_before_a_model_loads(micro_sd, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("diffalign.methods.builders.image.backbone", None)
    with pytest.raises(ConfigError, match=message):
        api.train(online_config(micro_sd, tmp_path / "run", **(TREE | changes)))


def test_a_tree_of_a_model_is_split_among_its_pictures(micro_sd):
    model = load_backbone(str(micro_sd), torch.device("cpu"))
    made, _, _ = rolled(model, Branch(splits=(0, 1)), 4.0, [3, 4, 5, 6, 7, 8, 9, 10])
    assert made.latents.shape[0] == 8
    assert len(torch.unique(made.latents, dim=0)) == 8
