"""Rounds: each draws from the model as the last one left it and is compared with that; kills change nothing in the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diffalign
from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.data.pictures import decode_image
from diffalign.data.table import ROWS, read_table
from diffalign.infer import generate_pairs as generating
from diffalign.infer import shards as drawing
from diffalign.infer.sample import draw
from diffalign.methods.config import TrainConfig
from diffalign.models.adapter_files import WEIGHTS
from diffalign.models.backbones.base_lora import BaseLora
from diffalign.models.backbones.table import load_pipeline
from diffalign.train import align as api
from diffalign.train import rounds
from diffalign.train.trainer import Trainer
from tests.killing import Killed, killing
from tests.micro_models import stock
from tests.shades import add_scorer
from tests.train.test_lora_in import write_kohya

PROMPTS = ["a red star", "a green heart", "a blue circle"]
DRAWN = {"prompts": PROMPTS, "max_prompts": 2, "images_per_prompt": 2, "num_inference_steps": 1, "scorers": ["adherence", "bright"]}


class Bright:
    """Scores the mean of an image."""

    name, unit, scale, licence, max_tokens, revision = "bright", "byte", "mean in [0, 255]", "Apache-2.0", None, None

    def __call__(self, images, prompts):
        return np.array([np.asarray(image).mean() for image in images], dtype=np.float64)


def bright():
    return Bright()


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    add_scorer(monkeypatch, "bright", bright)


def config_of(micro_sd, folder, **changed):
    options = {"method": "diffusion_dpo", "beta": 100.0, "learning_rate": 1e-2, "rank": 2, "train_batch_size": 2, "max_train_steps": 2}
    options |= {"checkpointing_steps": 1, "rounds": 2, "generate": DRAWN | {"rank_by": "bright"}, "output_dir": str(folder)}
    return TrainConfig(pretrained_model_name_or_path=str(micro_sd), **(options | changed))


@pytest.fixture(scope="module")
def whole(micro_sd, tmp_path_factory):
    """Two rounds, not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        add_scorer(patch, "bright", bright)
        folder = tmp_path_factory.mktemp("rounds") / "run"
        config = config_of(micro_sd, folder, validation_prompts=PROMPTS[:1])
        return rounds.train(config)


def log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_each_round_begins_where_the_last_ended_with_itself_as_reference(whole):
    for number in (1, 2):
        first, second = log(whole / f"round-{number}")
        assert first["loss"] == pytest.approx(np.log(2.0), abs=1e-6)
        assert (first["log_ratio/chosen"], first["log_ratio/rejected"]) == (0.0, 0.0)
        assert abs(second["log_ratio/chosen"]) > 0.0
    one, two = (load_file(whole / f"round-{number}" / WEIGHTS) for number in (1, 2))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
    largest = max((one[name] - two[name]).abs().max() for name in one)
    assert 0.0 < largest <= 2.1e-2  # two steps of AdamW at rate 1e-2 from where the first round ended, and its decay


def test_a_round_draws_with_the_result_of_the_last_to_the_next_prompts_from_seeds_of_its_own(whole):
    one, two = (read_table(whole / f"round-{number}" / "data") for number in (1, 2))
    drawn = [{record.prompt: record for record in table} for table in (one, two)]
    assert list(map(len, drawn)) == [2, 2]
    (shared,) = drawn[0].keys() & drawn[1].keys()  # three prompts, two a round: the second takes the third, and begins again
    again = drawn[1][shared]
    assert again.meta["seeds"] != drawn[0][shared].meta["seeds"]
    seeds = [int(seed) for seed in again.meta["seeds"].split()]
    drawn = draw(diffalign.load(whole / "round-1"), [again.prompt] * 2, seeds, num_inference_steps=1)
    for candidate, image in zip(again.candidates, drawn, strict=True):
        assert np.abs(np.asarray(decode_image(candidate.image, "x"), float) - np.asarray(image, float)).max() <= 1.0


def test_the_folder_is_a_run_whose_adapter_is_the_whole_change_from_the_first_model(whole, micro_sd, tmp_path):
    assert (whole / WEIGHTS).read_bytes() == (whole / "round-2" / WEIGHTS).read_bytes()
    facts = json.loads((whole / "run.json").read_text())
    assert (facts["base"], facts["steps"], facts["seed"], "start" in facts) == (str(micro_sd), 4, 0, False)
    assert [(known["seed"], known["steps"], known["records"]) for known in facts["rounds"]] == [(0, 2, 2), (1_000_003, 2, 2)]
    assert [(line["step"], line["round"]) for line in log(whole)] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [path.name for path in sorted((whole / "validation").iterdir())] == [f"step-{step:06d}.png" for step in (0, 2, 4)]
    images = [draw(diffalign.load(folder), ["a red star"], [3], num_inference_steps=1)[0] for folder in (whole, whole / "round-2")]
    assert np.array_equal(*images)
    assert main(["export", "--output_dir", str(whole), "--destination", str(tmp_path / "lora"), "--formats", "diffusers"]) == 0
    assert "| rows | 2 |" in (tmp_path / "lora" / "README.md").read_text()


def test_a_round_that_was_stopped_is_the_last_one_and_the_best_weights_are_kept(micro_sd, whole, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "run.json").unlink()
    watched = ({"stopped": None, "best": {"step": 1, "held_out": 0.5}}, {"stopped": "step 2: held", "best": {"step": 1, "held_out": 0.25}})
    for number, told in enumerate(watched, 1):
        own = folder / f"round-{number}"
        facts = json.loads((own / "run.json").read_text())
        (own / "run.json").write_text(json.dumps(facts | told))
        (own / "best").mkdir()
        (own / "best" / WEIGHTS).write_text(f"of round {number}")
        (own / "eval.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (0, 1, 2)))
    monkeypatch.setattr(api, "run", None)  # what is finished is not run again, and there is no third
    rounds.train(config_of(micro_sd, folder, rounds=3, validation_prompts=PROMPTS[:1], resume_from_checkpoint="latest"))
    assert "round 2 of 3 is the last one, for it was stopped at step 2: held" in caplog.text
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["steps"], facts["stopped"], facts["best"]) == (4, "round 2, step 2: held", {"step": 2 + 1, "held_out": 0.25})
    assert (folder / "best" / WEIGHTS).read_text() == "of round 2"
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    assert [(row["step"], row["round"]) for row in rows] == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 2), (4, 2)]


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(micro_sd, whole, tmp_path, monkeypatch):
    config = config_of(micro_sd, tmp_path / "run")
    kills = [
        (generating, "write_table", 0),  # the first round is drawn and scored
        (Trainer, "optimizer_step", 1),  # after its first checkpoint
        (Bright, "__call__", 0),  # the second is drawn, and not scored
        (Trainer, "optimizer_step", 1),
        (rounds, "write", 1),  # everything is in place but run.json
    ]
    for where, name, survived in kills:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, killing(getattr(where, name), survived))
            with pytest.raises(Killed):
                rounds.train(config)
        with pytest.raises(ConfigError, match="holds an earlier run"):
            rounds.train(replace(config, resume_from_checkpoint=None))
        config = replace(config, resume_from_checkpoint="latest")
    monkeypatch.setattr(api, "run", None)  # both rounds are finished
    rounds.train(config)
    for file in ("train_log.jsonl", f"round-1/data/{ROWS}", f"round-2/data/{ROWS}"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file
    ours, uninterrupted = (load_file(folder / WEIGHTS) for folder in (tmp_path / "run", whole))
    assert ours.keys() == uninterrupted.keys()
    assert all(torch.equal(ours[key], uninterrupted[key]) for key in ours)


def test_more_rounds_go_on_from_the_last_one_and_other_settings_are_refused(micro_sd, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    config = config_of(micro_sd, tmp_path / "run", validation_prompts=PROMPTS[:1], resume_from_checkpoint="latest")
    trained = []
    monkeypatch.setattr(api, "run", lambda own, run=api.run: trained.append(own.start_from) or run(own))
    with pytest.raises(ConfigError, match=r"`beta` 100.0.*50.0"):
        rounds.train(replace(config, beta=50.0))
    rounds.train(replace(config, rounds=3))
    assert trained == [str(tmp_path / "run" / "round-2")]
    assert [known["steps"] for known in json.loads((tmp_path / "run" / "run.json").read_text())["rounds"]] == [2, 2, 2]
    with pytest.raises(ConfigError, match=r"`rounds` is 2.*round-3"):
        rounds.train(config)


class Same(Bright):
    """Finds all images alike."""

    def __call__(self, images, prompts):
        return np.zeros(len(images))


def test_what_was_not_used_yet_may_be_corrected_and_what_was_drawn_is_kept(micro_sd, tmp_path, monkeypatch):
    config = config_of(micro_sd, tmp_path / "run", generate=DRAWN | {"rank_by": "adherence"}, train_batch_size=10**6)
    with monkeypatch.context() as patch:
        patch.setattr(Bright, "__call__", killing(Bright.__call__, 0))
        with pytest.raises(Killed):
            rounds.train(config)
    monkeypatch.setattr(drawing, "draw", None)  # it was drawn, with the settings that have not changed
    monkeypatch.setattr(api, "run", lambda own: pytest.fail(f"out of memory at {own.train_batch_size}"))
    right = replace(config, generate=DRAWN | {"rank_by": "bright"}, resume_from_checkpoint="latest")
    for batch in (10**6, 2):  # of the round that is ranked now, nothing is trained yet
        with pytest.raises(pytest.fail.Exception, match=f"out of memory at {batch}"):
            rounds.train(replace(right, train_batch_size=batch))
    with pytest.raises(ConfigError, match=r"`generate` .*'bright'.*'adherence'"):
        rounds.train(replace(right, generate=DRAWN | {"rank_by": "adherence"}))


def test_images_that_are_all_alike_are_told_with_a_way_on(micro_sd, whole, tmp_path, monkeypatch):
    add_scorer(monkeypatch, "bright", Same)
    shutil.copytree(whole, tmp_path / "run")
    config = config_of(micro_sd, tmp_path / "run", rounds=3, validation_prompts=PROMPTS[:1], resume_from_checkpoint="latest")
    with pytest.raises(TableError, match=r"round-3.data: .*`rounds: 2`"):
        rounds.train(config)
    assert rounds.train(replace(config, rounds=2)) == tmp_path / "run"


def test_a_dataset_may_take_the_place_of_the_first_drawing(micro_sd, pairs_file, tmp_path):
    config = config_of(micro_sd, tmp_path / "run", dataset_name=str(pairs_file), max_train_steps=1, train_method="full", learning_rate=1e-4)
    rounds.train(config)
    assert len(read_table(tmp_path / "run" / "round-1" / "data")) == 24
    assert len(read_table(tmp_path / "run" / "round-2" / "data")) == 2
    assert log(tmp_path / "run" / "round-2")[0]["log_ratio/chosen"] == 0.0
    name = "unet/diffusion_pytorch_model.safetensors"
    one, two, result, base = (
        load_file(Path(f) / name) for f in (*(tmp_path / "run" / f"round-{i}" for i in (1, 2)), tmp_path / "run", micro_sd)
    )
    assert all(torch.equal(two[key], result[key]) for key in two)
    moved = [max((a[key] - b[key]).abs().max().item() for key in base) for a, b in ((one, base), (two, one))]
    assert moved == pytest.approx([1e-4, 1e-4], rel=0.05)  # one step each, the second from the end of the first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generate": {}, "dataset_name": "votes"}, "`rounds` is 2; expected `generate` with it"),
        ({"generate": {}, "rounds": 1}, "`dataset_name` is ''"),
        ({"rounds": 1, "dataset_name": "votes"}, "leave one of them out"),
        ({"generate": {**DRAWN, "guidence_scale": 4}}, "takes no `guidence_scale`. Did you mean `guidance_scale`"),
        ({"generate": {**DRAWN, "resolution": 64}}, "takes no `resolution`"),
        ({"generate": {**DRAWN, "images_per_prompt": "four"}}, "images_per_prompt"),
        ({"generate": {**DRAWN, "scorers": []}}, "`scorers` is empty"),
        ({"generate": {**DRAWN, "max_prompts": 0}}, "`generate.max_prompts` is 0"),
        ({"generate": {**DRAWN, "prompts": []}}, "there is no prompt to draw"),
        ({"eval_every": 6, "eval_prompts": ["a star"]}, "`eval_prompts` has 1 different prompts"),
        ({"transforms": ["pairss", "orient"]}, "there is no transform `pairss`"),
        ({"trajectory": {"ddim_inversion": {"step": 5}}}, "takes no `step`"),
        ({"scores": {"gain": "bright"}}, "`scores`: objective `dpo` reads no `gain`"),
        ({"method": "diffusion_npo"}, "does not learn which of its own images are better"),
        ({"resume_from_checkpoint": "checkpoint-2"}, "`resume_from_checkpoint` is 'checkpoint-2'; expected `latest`"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_drawn(micro_sd, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        rounds.train(config_of(micro_sd, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_start_must_be_a_finished_run_of_the_same_model_and_shape(whole, micro_sd, pairs_file, tmp_path):
    config = config_of(micro_sd, tmp_path / "run", rounds=1, generate={}, dataset_name=str(pairs_file), start_from=str(whole))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no finished run \\(it has no run.json\\)"):
        api.train(replace(config, start_from=str(tmp_path)))
    for wrong, message in (
        ({"rank": 4}, "has rank 2, and this run 4"),
        ({"lora_alpha": 1.0}, "has lora_alpha 2, and this run 1.0"),
        ({"pretrained_model_name_or_path": "assets/tiny-sd"}, "has base .*, and this run assets/tiny-sd"),
        ({"train_method": "full"}, "has train_method lora, and this run full"),
        ({"revision": "v2"}, "has revision None, and this run v2"),
        ({"pretrained_vae_model_name_or_path": "owner/vae"}, "has vae None, and this run owner/vae"),
    ):
        with pytest.raises(ConfigError, match=message):
            api.train(replace(config, **wrong))
    with pytest.raises(ConfigError, match=r"call diffalign.train.rounds.train\(TrainConfig"):
        api.train(config_of(micro_sd, tmp_path / "run"))


def test_a_dry_run_says_what_each_round_would_do(micro_sd, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps({"method": "rank_dpo", "rounds": 3, "generate": {**DRAWN, "images_per_prompt": 4}}))
    words = ["train", "--config", str(tmp_path / "c.yaml"), "--pretrained_model_name_or_path", str(micro_sd), "--dry_run"]
    assert main([*words, "--output_dir", str(tmp_path / "run"), "--train_batch_size", "2", "--max_train_steps", "7"]) == 0
    said = capsys.readouterr().out
    assert f"round 1 of 3  seed 0: 2 prompts x 4 images by {micro_sd}, ranked by adherence, bright; 7 steps" in said
    assert f"round 3 of 3  seed 2000006: 2 prompts x 4 images by {tmp_path / 'run' / 'round-2'}, ranked by" in said
    assert "activations of 8 images" in said
    assert "the reference's trained weights" in said
    assert not (tmp_path / "run").exists()


def test_rounds_draw_with_and_train_from_a_base_of_several_files_and_trained_text_encoders(micro_sd, tmp_path):
    style, start = (
        write_kohya(micro_sd, tmp_path / f"{name}.safetensors", text=text) for name, text in (("style", False), ("start", True))
    )
    denoiser = tmp_path / "unet"
    network = stock(micro_sd).unet
    with torch.no_grad():
        network.conv_in.weight.mul_(1.5)
    network.save_pretrained(denoiser)
    files = {"denoiser": str(denoiser), "base_lora": [f"{style}:0.5"], "start_from_lora": str(start), "rank": 8}
    run = rounds.train(config_of(micro_sd, tmp_path / "run", **files, train_text_encoder=True, max_train_steps=1))
    first, second = (read_table(run / f"round-{i}" / "data") for i in (1, 2))
    loras = [BaseLora.of(f"{style}:0.5"), BaseLora.of(str(start))]
    for table, pipe in (
        (first, load_pipeline(str(micro_sd), denoiser=denoiser, base_loras=loras)),
        (second, diffalign.load(run / "round-1")),
    ):
        record = table[0]
        seeds = [int(seed) for seed in record.meta["seeds"].split()]
        drawn = draw(pipe, [record.prompt] * 2, seeds, num_inference_steps=1)
        for candidate, image in zip(record.candidates, drawn, strict=True):
            assert candidate.image is not None
            difference = np.asarray(decode_image(candidate.image, "x"), float) - np.asarray(image, float)
            assert np.abs(difference).max() <= 1  # of an adapter that is fused, and of one beside the weights
    assert [log(run / f"round-{i}")[0]["log_ratio/chosen"] for i in (1, 2)] == [0.0, 0.0]
    one, two, result = (load_file(folder / WEIGHTS) for folder in (run / "round-1", run / "round-2", run))
    assert any(name.startswith("text_encoder.") and not torch.equal(value, two[name]) for name, value in one.items())
    assert all(torch.equal(value, result[name]) for name, value in two.items())
    assert (json.loads((run / "run.json").read_text())["base_lora"][0]["file"], len(one)) == (str(style), len(two))


def test_a_round_with_momentum_begins_and_draws_beyond_the_last(micro_sd, whole, tmp_path):
    folder = tmp_path / "run"
    rounds.train(config_of(micro_sd, folder, rounds=3, round_momentum=0.5, max_train_steps=1))
    ends = [load_file(folder / f"round-{number}" / WEIGHTS) for number in (1, 2)]
    first, second = (load_file(folder / f"round-{number}" / "start" / WEIGHTS) for number in (2, 3))
    for name in ends[0]:  # after the first round from an adapter whose factor B is zero, later from round to round
        scale = 1.5 if ".lora_B." in name else 1.0
        torch.testing.assert_close(first[name], scale * ends[0][name])
        torch.testing.assert_close(second[name], 1.5 * ends[1][name] - 0.5 * ends[0][name])
    (line,) = log(folder / "round-2")
    assert line["loss"] == pytest.approx(np.log(2.0), abs=1e-6)  # the reference is where it began
    record = read_table(folder / "round-2" / "data")[0]
    (again,) = draw(
        diffalign.load(folder / "round-2" / "start"), [record.prompt], [int(record.meta["seeds"].split()[0])], num_inference_steps=1
    )
    assert np.abs(np.asarray(decode_image(record.candidates[0].image, "x"), float) - np.asarray(again, float)).max() <= 1.0


def test_a_whole_denoiser_begins_beyond_its_run_as_seen_from_the_base(micro_sd, tmp_path):
    folder = tmp_path / "run"
    rounds.train(config_of(micro_sd, folder, train_method="full", round_momentum=0.5, max_train_steps=1))
    (base, end, start) = (
        load_file(path / "unet" / "diffusion_pytorch_model.safetensors")
        for path in (micro_sd, folder / "round-1", folder / "round-2" / "start")
    )
    assert any((end[name] != base[name]).any() for name in end)
    for name in end:
        torch.testing.assert_close(start[name], end[name] + 0.5 * (end[name] - base[name]))


@pytest.mark.parametrize(
    ("changed", "says"), [({"rounds": 1}, "a single round"), ({"start_from_lora": "x.safetensors"}, "`start_from_lora`")]
)
def test_momentum_without_a_way_to_go_on_is_refused(micro_sd, tmp_path, changed, says):
    with pytest.raises(ConfigError, match=says):
        rounds.train(config_of(micro_sd, tmp_path / "run", round_momentum=0.5, **changed))
