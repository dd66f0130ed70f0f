"""Reward models from votes to scorers: what is learnt, held out, kept and refused."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diffalign
from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.view import View
from diffalign.methods.builders import reward as rewardbuild
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.rewards.heads.embeds import ClipEmbeds, PixelEmbeds
from diffalign.rewards.heads.pairs import split
from diffalign.rewards.scorers.trained import HeadScorer
from diffalign.rewards.table import load_scorer
from diffalign.train.align import align, train
from tests.infer.runs import write_run
from tests.rewards.models import SIDE, cropped, pictures, spelt, write_clip

QUICK = {"train_batch_size": 16, "max_train_steps": 40, "learning_rate": 1e-2, "log_every": 20}
TASTES = {"ann": 1.0, "bob": -1.0}  # light pictures, dark ones


def grey(shade):
    return Image.new("RGB", (8, 8), (int(shade),) * 3)


def vote(name, prompt, shades, user="ann"):
    """Return a pair whose lighter picture ann prefers, and bob the darker one."""
    candidates = tuple(Candidate(image=encode_image(grey(shade))) for shade in shades)
    return Record(name, prompt, candidates, prob=float((shades[0] - shades[1]) * TASTES[user] > 0), user=user, source=name)


def votes(users=("ann",), prompts=12, each=3, seed=0):
    """Return the votes of all users on the same pictures."""
    rng = np.random.default_rng(seed)
    shown = [(p, n, rng.choice(256, 2, replace=False)) for p in range(prompts) for n in range(each)]
    return [vote(f"{p}-{n}-{user}", f"prompt {p}", shades, user) for p, n, shades in shown for user in users]


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Votes of two users of opposite tastes as a table, and runs of both methods on it."""
    root = tmp_path_factory.mktemp("town")
    write_table(root / "votes", votes(("ann", "bob"), 16))
    heads = {"bt": {"hidden": 16}, "pal": {"score": "dist", "hidden": 16, "width": 8, "user_rate": 10.0}}
    for name, constants in heads.items():
        align("pixels", root / "votes", method=f"reward_{name}", output_dir=root / name, reward_head={name: constants}, **QUICK)
    return root


def run_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_clear_taste_is_learnt_and_the_run_becomes_a_scorer(tmp_path):
    folder = align("pixels", votes(), method="reward_bt", output_dir=tmp_path / "run", reward_head={"bt": {"hidden": 16}}, **QUICK)
    facts = run_of(folder)
    assert (facts["kind"], facts["inference"], facts["records"]) == ("reward", "reward", 33)  # one prompt of twelve is held out
    assert facts["held_out"]["pairs"] == 3
    assert facts["held_out"]["accuracy"] == 1.0
    with Image.open(folder / "reliability.png") as picture:
        assert picture.size == (400, 400)
    scorer = load_scorer({"trained": {"path": str(folder)}})
    dark, middle, light = scorer([grey(20), grey(120), grey(230)], 3 * ["prompt 3"])
    assert dark < middle < light
    assert (scorer.name, scorer.max_tokens) == ("trained", None)


def test_two_opposite_users_need_a_reward_each(town):
    """One reward for both is right for one of them; a user's own is right for each, and a new user's is fitted to a file of pairs."""
    assert run_of(town / "bt")["held_out"]["accuracy"] == 0.5
    assert run_of(town / "pal")["held_out"]["accuracy"] > 0.9
    write_table(town / "new", [vote(str(n), "prompt 1", (30 + n, 200 - n), "bob") for n in range(4)])
    for user, rises in (("ann", True), ("bob", False), (str(town / "new"), False)):
        scorer = load_scorer({"trained": {"path": str(town / "pal"), "user": user}})
        dark, light = scorer([grey(20), grey(230)], ["prompt 2", "prompt 2"])
        assert (light > dark) == rises
    assert scorer.name == "trained-new"


def test_the_score_of_a_known_user_has_their_whole_id_also_a_number(tmp_path):
    people = ["team.ann", "7"]
    records = [replace(record, user=people[n % 2]) for n, record in enumerate(votes())]
    given = {"reward_head": {"pal": {"hidden": 4, "width": 4}}} | QUICK | {"max_train_steps": 1, "log_every": 1}
    folder = align("pixels", records, method="reward_pal", output_dir=tmp_path / "run", **given)
    names = [load_scorer({"trained": {"path": str(folder), "user": user}}).name for user in ("team.ann", 7)]
    assert names == ["trained-team.ann", "trained-7"]
    with pytest.raises(ConfigError, match=r"`user` is \[7\]; expected str or int$"):
        load_scorer({"trained": {"path": str(folder), "user": [7]}})


def test_a_scorer_gives_the_heads_rewards_times_beta(tmp_path):
    head = {"bt": {"hidden": 0}}
    folder = align("pixels", votes(), method="reward_bt", output_dir=tmp_path / "run", reward_head=head, beta=3.0, **QUICK)
    weights = load_file(folder / "reward_head.safetensors")
    seen = PixelEmbeds().images([grey(77)])[0]
    expected = 3.0 * ((seen - weights["image_mean"]) / weights["image_deviation"]) @ weights["layers.weight"][0]
    scorer = load_scorer({"trained": {"path": str(folder), "name": "mine"}})
    assert scorer([grey(77)], ["x"])[0] == pytest.approx(float(expected), rel=1e-4)
    assert scorer.name == "mine"


def test_rankings_and_ties_are_learnt_from(tmp_path):
    """Ranks of three give three pairs; equal ranks a tie, which has no preference to be right about."""
    shades = [[200, 120, 40], [220, 90, 90], [180, 60, 10]]
    records = []
    for p in range(9):
        own = shades[p % 3]
        ranks = [1.0 + sum(other > s for other in own) for s in own]
        candidates = tuple(Candidate(image=encode_image(grey(s)), rank=r) for s, r in zip(own, ranks, strict=True))
        records.append(Record(str(p), f"prompt {p}", candidates, source=str(p)))
    given = {"held_out_share": 1 / 3, "reward_head": {"bt": {"hidden": 16}}}
    facts = run_of(align("pixels", records, method="reward_bt", output_dir=tmp_path / "run", **given, **QUICK))
    out = facts["held_out"]
    assert (facts["records"], out["pairs"], out["prompts"]) == (18, 9, 3)
    assert out["accuracy"] == 1.0


def test_a_resumed_run_equals_an_uninterrupted_one(town):
    given = {"pretrained_model_name_or_path": "pixels", "dataset_name": str(town / "votes"), "output_dir": str(town / "resumed")}
    head = {"pal": {"hidden": 4, "width": 4}}
    config = TrainConfig(**given, method="reward_pal", reward_head=head, **{**QUICK, "max_train_steps": 4}, checkpointing_steps=2)
    whole = load_file(train(config) / "reward_head.safetensors")
    shutil.rmtree(town / "resumed" / "checkpoint-4")
    resumed = load_file(train(replace(config, resume_from_checkpoint="latest")) / "reward_head.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(CheckpointError, match="made with records 84, this run has 48"):
        train(replace(config, resume_from_checkpoint="latest", held_out_share=0.5))


def test_a_dataset_of_its_own_is_measured_on_and_everything_is_trained_on(town, tmp_path, caplog):
    write_table(tmp_path / "other", votes(prompts=2, seed=1))
    given = {"held_out_dataset_name": str(tmp_path / "other"), "reward_head": {"bt": {"hidden": 4}}, **QUICK}
    facts = run_of(align("pixels", town / "votes", method="reward_bt", output_dir=tmp_path / "run", **given))
    assert (facts["records"], facts["held_out"]["pairs"], facts["held_out_share"]) == (96, 6, None)
    assert "2 of 2 held-out prompts are trained on too" in caplog.text


def test_held_out_pairs_are_not_those_of_the_training_and_have_a_split_of_their_own(town, tmp_path, monkeypatch):
    same = {"pretrained_model_name_or_path": "pixels", "method": "reward_bt", "dataset_name": str(town / "votes")}
    config = TrainConfig(**same, output_dir=str(tmp_path / "run"), held_out_dataset_name=str(town / "votes"))
    with pytest.raises(TableError, match="held-out pairs"):
        train(config)
    asked = []
    monkeypatch.setattr(rewardbuild, "open_dataset", lambda other, recipe, reuse: asked.append(other) or open_dataset(config, recipe))
    with pytest.raises(TableError, match="those that are trained on"):
        train(replace(config, reader="trl", dataset_split_name="train", held_out_split_name="test"))
    assert [(other.reader, other.dataset_split_name) for other in asked] == [(None, "test")]


def test_what_embeds_leaves_the_memory_before_the_training(town, tmp_path, monkeypatch):
    class Own(PixelEmbeds):
        pass

    made = []
    monkeypatch.setattr(rewardbuild, "load_embeds", lambda *_: made.append(weakref.ref(own := Own())) or own)
    config = TrainConfig(pretrained_model_name_or_path="pixels", method="reward_bt", dataset_name=str(town / "votes"))
    parts = rewardbuild.parts(config, recipe := recipe_of(config, "reward"), open_dataset(config, recipe), torch.device("cpu"))
    gc.collect()
    assert made[0]() is None
    assert parts.backbone.fingerprint() == PixelEmbeds.fingerprint


def test_candidates_that_answer_prompts_of_their_own_are_refused(tmp_path):
    first, *others = votes()
    told = replace(first, candidates=tuple(replace(c, prompt="another") for c in first.candidates))
    with pytest.raises(TableError, match="0-0-ann has a prompt of its own"):
        align("pixels", [told, *others], method="reward_bt", output_dir=tmp_path / "run", **QUICK)


def test_held_out_prompts_are_a_share_drawn_by_the_seed_and_share_no_record(tmp_path):
    entries = View(write_table(tmp_path / "table", votes(prompts=10, each=2)), []).entries
    kept, out = split(entries, 0.3, 0)
    assert (len({r.prompt for r in out}), len(out), len(kept)) == (3, 6, 14)
    assert not {r.prompt for r in out} & {r.prompt for r in kept}
    assert {r.prompt for r in split(entries, 0.3, 1)[1]} != {r.prompt for r in out}


def test_words_are_counted_and_a_picture_is_told_from_its_background():
    embeds = PixelEmbeds()
    one, two, other = embeds.prompts(["a star", "a a Star", "ring"])
    assert two.abs().sum() == 3.0
    assert not torch.equal(one, other)
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    image.paste((0, 0, 0), (0, 8, 8, 16))  # the second cell of the first column
    seen = embeds.images([image])[0].unflatten(0, (4, 8, 8))
    assert seen[:, 1, 0].tolist() == [-1.0, -1.0, -1.0, 2.0]
    assert seen[:, 5, 5].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_a_clips_embeddings_are_its_own_projected_to_a_length_of_root_width(tmp_path):
    network = write_clip(tmp_path / "clip")
    images = [image.resize((SIDE, SIDE)) for image in pictures()]  # which the processor leaves as they are
    embeds = ClipEmbeds(str(tmp_path / "clip"))
    assert (embeds.image_width, embeds.prompt_width, embeds.max_tokens) == (12, 12, 8)
    with torch.no_grad():
        seen = network.get_image_features(pixel_values=torch.stack([cropped(image) for image in images])).pooler_output
        told = network.get_text_features(input_ids=torch.tensor([spelt("a ring")])).pooler_output
    torch.testing.assert_close(embeds.images(images), seen / seen.norm(dim=1, keepdim=True) * 12**0.5, atol=1e-5, rtol=0)
    torch.testing.assert_close(embeds.prompts(["a ring"]), told / told.norm(dim=1, keepdim=True) * 12**0.5, atol=1e-5, rtol=0)


def test_a_head_on_a_clip_refuses_another_one(tmp_path):
    write_clip(tmp_path / "clip")
    given = {"reward_head": {"bt": {"hidden": 4}}, **QUICK}
    folder = align(tmp_path / "clip", votes(), method="reward_bt", output_dir=tmp_path / "run", **given)
    scorer = load_scorer({"trained": {"path": str(folder)}})
    assert np.isfinite(scorer(pictures(), ["a", "b", "c"])).all()
    assert scorer.max_tokens == 8
    other = write_clip(tmp_path / "clip")
    other.visual_projection.weight.data.mul_(1.5)
    other.save_pretrained(tmp_path / "clip")
    with pytest.raises(CheckpointError, match="made on other embeddings"):
        load_scorer({"trained": {"path": str(folder)}})


def test_the_command_line_trains_scores_and_says_what_it_would_do(town, tmp_path, capsys):
    recipe = [
        "train",
        "--config",
        "configs/tiny/reward_bt.yaml",
        "--dataset_name",
        str(town / "votes"),
        "--output_dir",
        str(tmp_path / "r"),
    ]
    assert main([*recipe, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "reward head bt" in said
    assert "records         78: 246 passes in 300 steps" in said  # of 96 those of 13 prompts; three of 16 are held out
    assert main([*recipe, "--method", "reward_more", "--reward_head", "{more: {by: place}}", "--dry_run"]) == 2
    assert "has no `place`" in capsys.readouterr().err
    assert main([*recipe, "--max_train_steps", "2"]) == 0
    assert "use it as the scorer {trained: {path:" in capsys.readouterr().out
    spec = f"[{{trained: {{path: {tmp_path / 'r'}}}}}]"
    assert main(["score", "--dataset_name", str(town / "votes"), "--scorers", spec, "--output_dir", str(tmp_path / "scored")]) == 0
    assert diffalign.read_table(tmp_path / "scored").manifest["scores"].keys() == {"trained"}


def test_a_run_loads_as_its_scorer(town):
    """Of PAL as that of the average user."""
    shown, told = [grey(20), grey(120), grey(230)], 3 * ["prompt 2"]
    for name in ("bt", "pal"):
        loaded, scorer = diffalign.load(town / name), load_scorer({"trained": {"path": str(town / name)}})
        assert isinstance(loaded, HeadScorer)
        assert loaded.name == "trained"
        np.testing.assert_array_equal(loaded(shown, told), scorer(shown, told))


def test_what_wants_a_generator_refuses_a_scorer(town, tmp_path, micro_sd, pairs_file, capsys):
    run, out = str(town / "bt"), str(tmp_path / "out")
    training = ["train", "--pretrained_model_name_or_path", str(micro_sd), "--dataset_name", str(pairs_file)]
    for words in (
        ["eval", "--output_dir", run, "--prompts", "a star"],
        ["eval", "--output_dir", run, "--dataset_name", str(town / "votes")],
        ["export", "--output_dir", run, "--destination", out],
        ["user", "embed", "--output_dir", run, "--dataset_name", str(town / "votes"), "--destination", out],
        ["pairs", "generate", "--pretrained_model_name_or_path", run, "--prompts", "x", "--scorers", "adherence", "--output_dir", out],
        [*training, "--start_from", run, "--output_dir", out],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"a run of reward_bt, a scorer and no generator; use it as the scorer {{trained: {{path: {run}}}}}" in said
    with pytest.raises(ConfigError, match="`positive` for these and personalised runs; this is reward_bt"):
        diffalign.load(run, positive=write_run(tmp_path / "run", micro_sd))
    with pytest.raises(CheckpointError, match="a scorer and no generator"):
        diffalign.load(write_run(tmp_path / "npo", micro_sd, method="diffusion_npo"), positive=run)
    assert not (tmp_path / "out").exists()
    assert not (town / "bt" / "eval").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward_head": {"bt": {"hiden": 3}}}, ConfigError, "`hiden`"),
        ({"reward_head": {"pal": {}}}, ConfigError, "choose reward_pal"),
        ({"reward_head": {"bt": {"hidden": -1}}}, ConfigError, "`hidden` is -1; expected at least 0"),
        ({"method": "reward_pal", "reward_head": {"pal": {"kind": "B", "score": "dist"}}}, ConfigError, "kind B compares by the angle"),
        ({"rank": 4}, ConfigError, "`rank` means nothing to a reward model"),
        ({"objective": "dpo", "beta": 1.0}, ConfigError, "reference"),
        ({"objective": {"cpo": {}}}, ConfigError, "objective of a reward model is {simpo: "),
        ({"objective": "simpo"}, ConfigError, "{simpo: {beta: BETA, gamma: 0}}"),
        ({"objective": {"simpo": {"gamma": 0.0, "alpha": 0.25}}}, ConfigError, "no logits of preference; found {simpo: .*0.25"),
        ({"reference": "none"}, ConfigError, "`reference` means nothing to a reward model"),
        ({"transforms": ["pairs", "orient", "invert"]}, ConfigError, "transform `invert` would make a reward"),
        ({"held_out_split_name": "test"}, ConfigError, "`held_out_split_name` is of `held_out_dataset_name`"),
        ({"held_out_share": 1.0}, ConfigError, "`held_out_share` is 1.0"),
        ({"pretrained_model_name_or_path": "assets/tiny-sd"}, CheckpointError, "no CLIP"),
        (
            {"pretrained_model_name_or_path": "assets/tiny-lm"},
            TableError,
            "a table of images; the model of this run trains on pairs of texts",
        ),
        ({"method": "diffusion_dpo", "reward_head": {"bt": {}}}, ConfigError, "`reward_head` is of reward models"),
        ({"max_train_samples": 1}, TableError, "1 prompts, and none with a preference is left"),
    ],
)
def test_what_cannot_be_meant_is_refused(town, tmp_path, changes, error, message):
    given = {"pretrained_model_name_or_path": "pixels", "method": "reward_bt", "dataset_name": str(town / "votes")} | changes
    with pytest.raises(error, match=message):
        train(TrainConfig(**given, output_dir=str(tmp_path / "run")))


def test_pal_needs_users_and_the_scorer_known_ones(town, tmp_path):
    nameless = [replace(record, user=None) for record in votes()]
    with pytest.raises(TableError, match="no record names its user"):
        align("pixels", nameless, method="reward_pal", output_dir=tmp_path / "run", **QUICK)
    for run, user, message in (
        ("bt", "ann", "knows no users"),
        ("pal", "anne", "no user of .* Did you mean `ann`"),
        ("pal", town / "votes", "2 users"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_scorer({"trained": {"path": str(town / run), "user": str(user)}})
    with pytest.raises(CheckpointError, match="no finished run"):
        load_scorer({"trained": {"path": str(tmp_path)}})
