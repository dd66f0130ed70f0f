"""Training an edit model on pairs of edits of an input picture: what is learnt, kept and counted, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffalign
from diffalign.cli.main import main
from diffalign.core.errors import ConfigError, TableError
from diffalign.core.runs import Run
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.table import read_table, write_table
from diffalign.evaluate.heldout import accuracy_on
from diffalign.infer.draw_votes import open_painters
from diffalign.infer.generate_pairs import check as check_generation
from diffalign.infer.kinds.image import outlook
from diffalign.infer.options import GenerateConfig
from diffalign.infer.shards import drawn_as
from diffalign.methods.builders import dry_run, meta_model
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.checks import check
from diffalign.train.align import train
from diffalign.train.trainer import trainer_for
from tests.data.image_tables import image_pair
from tests.edit_models import input_picture, small_references
from tests.micro_models import SIDE, picture, stock, write_micro
from tests.train.configs import small_config

MODELS = {"flux_kontext": {}, "qwen_image_edit": {}, "plus": {"plus": True}, "flux2": {}}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Input pictures are read small."""
    with small_references():
        yield


def edit(number: int, width: int = SIDE, height: int = SIDE, **values):
    """Two edits of an input picture, which is twice as large."""
    pictures = (encode_image(input_picture(seed, width, height)) for seed in (number, 100 + number))
    source = encode_image(input_picture(200 + number, 2 * width, 2 * height))
    return image_pair(number, *pictures, **{"prob": float(number % 2), "prompt": "a red star", "conditioning_image": source, **values})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with models, tables and an input picture."""
    root = tmp_path_factory.mktemp("edits")
    for name, options in MODELS.items():
        write_micro("qwen_image_edit" if name == "plus" else name, root / name, **options)
    write_table(root / "edits", [edit(number) for number in range(4)])
    write_table(
        root / "shapes", [edit(number, *((SIDE, SIDE), (2 * SIDE, SIDE))[number // 2], prompt=f"a {number}") for number in range(4)]
    )
    some = [edit(0), edit(1, conditioning_image=None)]
    write_table(root / "some", some)
    write_table(root / "none", [edit(number, conditioning_image=None) for number in range(2)])
    write_table(root / "own", [edit(0, conditioning_image=None, candidates=edit(0).candidates[:1] * 2)])
    input_picture(7, 64, 64).save(root / "input.png")
    return root


def config(place: Path, output: str, model: str = "flux_kontext", data: str = "edits", **values):
    own = {"max_train_steps": 3, "learning_rate": 3e-2, "beta": 500.0, "train_batch_size": 2, "resolution": SIDE}
    own["max_sequence_length"] = 64 if model == "flux2" else 24
    return small_config(place / model, place / data, place / output, **{**own, **values})


@pytest.mark.parametrize("model", MODELS)
def test_three_steps_change_what_the_stock_pipeline_draws(model, place):
    """A Kontext also draws a validation picture of the first step and the last, with a VAE of another precision than its prompts."""
    shown = {"validation_prompts": ["a star"], "validation_image": [str(place / "input.png")], "mixed_precision": "bf16"}
    shown = shown if model == "flux_kontext" else {}
    run = train(config(place, f"{model}-run", model, **shown))
    pipe, source = diffalign.load(run), input_picture(3, 64, 64)
    drawn, before, other = (
        picture(pipe, image=source),
        picture(stock(place / model), image=source),
        picture(pipe, image=input_picture(4, 64, 64)),
    )
    assert type(pipe) is type(stock(place / model))
    assert np.abs(drawn - before).max() > 1e-3
    assert np.abs(drawn - other).max() > 1e-4  # by little: a random network hardly looks at it
    assert sorted(file.name for file in run.glob("validation/*")) == (["step-000000.png", "step-000003.png"] if shown else [])
    accuracy = accuracy_on(Run.open(run), str(place / "edits"), None, None, "cpu")
    assert accuracy.right + accuracy.wrong == 4


@pytest.mark.parametrize("model", ["flux_kontext", "plus"])
def test_a_run_without_a_cache_has_the_same_batches_and_dropped_prompts(model, place):
    """Of pictures of two shapes, mirrored and cropped at random; a dropped prompt keeps its picture."""
    framing = {"aspect_ratio_buckets": f"{SIDE},{SIDE};{SIDE},{2 * SIDE}", "random_flip": True, "random_crop": True, "cache_variants": 3}
    first, second = (trainer_for(config(place, f"{cache}-{model}", model, "shapes", cache=cache, **framing)) for cache in ("disk", "off"))
    for epoch in range(3):
        for rows in ([0, 1], [2, 3]):
            stored, live = (run.parts.pairs.to_batch([run.parts.pairs[row, epoch] for row in rows]) for run in (first, second))
            assert stored.condition.keys() == live.condition.keys() == stored.empty.keys() == live.empty.keys()
            for kind in ("condition", "empty"):
                for name, value in getattr(stored, kind).items():
                    other = getattr(live, kind)[name]
                    torch.testing.assert_close(value.float(), other.float(), rtol=1e-5, atol=1e-5, msg=f"{kind} {name}")
            assert torch.equal(stored.condition["reference"], stored.empty["reference"])
            words = stored.condition["prompt_embeds"], stored.empty["prompt_embeds"]
            assert (words[0] - words[1]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_what_has_no_input_picture_is_refused_before_weights_load(place):
    cases = {
        "none: record 0 has no input picture": {"data": "none"},
        "some: record 1 has no input picture, as other": {"data": "some", "model": "flux2"},
        "`generate`": {"generate": {"scorers": ["pickscore"]}, "rounds": 2, "prompts": None},
        "`eval_every`": {"eval_every": 1, "eval_prompts": ["a"], "eval_reward": "pickscore"},
        "`validation_image` has 0 files": {"validation_prompts": ["a"]},
        "user branch": {"method": "ppd", "beta": None},
        "branches are not told apart": {"method": "diffusion_npo", "beta": None},
        "multiples of 16": {"resolution": 40},
    }
    for number, (fact, values) in enumerate(cases.items()):
        with pytest.raises((ConfigError, TableError)) as refusal:
            train(config(place, f"refused-{number}", **values))
        assert fact in str(refusal.value)


def test_flux2_may_be_trained_without_input_pictures(place):
    run = trainer_for(config(place, "plain", "flux2", "none"))
    assert "reference" not in run.parts.pairs.to_batch([run.parts.pairs[0, 0]]).condition


def test_pairs_are_generated_from_the_pictures_of_a_table_and_can_be_trained_on(place):
    words = ["--pretrained_model_name_or_path", str(place / "flux_kontext"), "--dataset_name", str(place / "edits"), "--max_prompts", "2"]
    words += ["--output_dir", str(place / "drawn"), "--resolution", str(SIDE), "--max_sequence_length", "16", "--scorers", "adherence"]
    assert main(["pairs", "generate", *words, "--images_per_prompt", "3", "--num_inference_steps", "2"]) == 0
    first, second = table = read_table(place / "drawn")
    assert (first.prompt, len(first.candidates)) == (second.prompt, 3)
    sources = {record.conditioning_image for record in read_table(place / "edits")}
    assert len({first.conditioning_image, second.conditioning_image} & sources) == 2
    assert first.candidates[0].image != second.candidates[0].image  # of the same prompt and seed
    pipe, seed = stock(place / "flux_kontext"), int(first.meta["seeds"].split()[0])
    source = decode_image(first.conditioning_image or b"", "source")
    expected = picture(pipe, first.prompt, seed=seed, image=source, guidance_scale=5.0, max_sequence_length=16)
    assert np.abs(np.asarray(decode_image(first.candidates[0].image or b"", "drawn")) - 255.0 * expected[0]).max() <= 1.0
    trainer = trainer_for(config(place, "on-drawn", data="drawn", method="rank_dpo", beta=None, scores={"gains": "adherence"}))
    assert len(trainer.parts.pairs) == len(table)


def test_a_run_is_compared_with_its_base_on_the_input_pictures_of_a_table(place, capsys):
    run = train(config(place, "judged"))
    words = ["--output_dir", str(run), "--scorers", "adherence", "--num_inference_steps", "1", "--images_per_prompt", "1"]
    assert main(["eval", *words, "--prompts", str(place / "edits"), "--max_prompts", "2"]) == 0
    facts = json.loads((run / "eval" / "eval.json").read_text())
    assert facts["prompts"] == 2
    drawn = [list(read_table(folder)) for folder in sorted((run / "eval" / "images").glob("*/00000"))]
    assert len(drawn) == 2
    assert all(base.conditioning_image == own.conditioning_image is not None for base, own in zip(*drawn, strict=True))
    assert all(base.candidates[0].image != own.candidates[0].image for base, own in zip(*drawn, strict=True))
    assert main(["eval", *words, "--prompts", "a star"]) == 2
    assert "`prompts` is a star; an edit model" in capsys.readouterr().err


def test_what_draws_to_prompts_alone_refuses_an_edit_model(place):
    model = str(place / "flux_kontext")
    with pytest.raises(ConfigError, match=f"{model}: an edit model"):
        open_painters(model)
    with pytest.raises(ConfigError, match=f"{model}: an edit model"):
        check_generation(GenerateConfig(pretrained_model_name_or_path=model, output_dir="x", scorers=["pickscore"]), ["a star"])
    run = Run(place, "image", "diffusion_dpo", "plain", model, "lora", {})
    with pytest.raises(ConfigError, match=f"{model}: an edit model"):
        drawn_as(run)


@pytest.mark.parametrize("model", ["flux_kontext", "plus"])
def test_a_dry_run_counts_the_input_pictures(model, place):
    own = config(place, f"dry-{model}", model)
    recipe = check(own)
    assert "with their input pictures" in outlook(own, recipe, 2)
    trainer = trainer_for(own)
    stored = trainer.parts.pairs
    row = stored[0, 0]
    numbers = 8 * row["latents"][0].numel() + 4 * row["condition"]["reference"].numel()
    words = sum(value.numel() for name, value in row["condition"].items() if name != "reference")
    numbers += words * (8 if model == "plus" else 2)  # of each record and its empty prompt; or of both prompts
    outline = meta_model.outline(own, recipe, torch.device("cpu"))
    assert dry_run.cache_bytes(own, outline, open_dataset(own, recipe)) == 4 * numbers
