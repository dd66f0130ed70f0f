"""A dry run counts what a run then uses, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from transformers import CLIPVisionConfig

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.importing import import_dataset
from diffalign.data.view import View
from diffalign.infer.kinds.table import KINDS
from diffalign.methods.builders import dry_run
from diffalign.methods.builders.image import backbone, equip, pairs
from diffalign.methods.builders.meta_model import Kept, activations, outline
from diffalign.methods.builders.users import expected_sizes
from diffalign.methods.checks import check
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.adapters import trainable
from diffalign.train.optimizer import make_optimizer
from tests.checked import checked
from tests.infer.user_runs import write_votes
from tests.micro_models import MAKERS, write_micro
from tests.models.users.vlm_models import write_llava

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FAMILIES = ("sd", "sdxl", "pixart", "sd3", "flux")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of micro models, by family."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: str(write_micro(kind, folder / kind)) for kind in MAKERS}


def config(model, **values):
    return TrainConfig(**{"pretrained_model_name_or_path": str(model), "dataset_name": "pairs", "rank": 2, **values})


def outlined(own, device=CPU):
    """Return the model without numbers."""
    return outline(own, recipe_of(own), device)


def sizes(own, device=CPU):
    """Return {what: bytes} of a dry run."""
    return dict(dry_run.memory(own, recipe_of(own), outlined(own, device)))


def weighed(own):
    """Return {what: bytes} of the weights alone, which takes no forward pass."""
    return dict(dry_run.weights(own, recipe_of(own), outlined(own).model.denoiser))


def report(own):
    """Return what `diffalign train --dry_run` says, whatever lies in the output folder."""
    recipe = check(replace(own, overwrite_output_dir=True))
    return KINDS[recipe.kind].outlook(own, recipe, 2)


def loaded(own):
    """Return the model as it is trained."""
    recipe = recipe_of(own)
    model = backbone(own, recipe, CPU)
    equip(own, recipe, model, evidence=expected_sizes(recipe, model, ()) if recipe.users else None)
    return model


def kept_in_truth(own, images):
    """Return the bytes that autograd keeps of a forward pass with numbers, in the kernels of this machine."""
    model = loaded(own)
    denoiser = model.denoiser.train()
    kept = Kept([*denoiser.parameters(), *denoiser.buffers()])
    condition = model.encode_prompt(["a prompt"] * images)
    x = torch.randn(images, *model.latent_shape(model.resolution, model.resolution))
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value):
        (model.predict(denoiser, x, torch.full((images,), 0.5), condition).float() - x).square().mean()
    return kept.bytes


@pytest.mark.parametrize(
    "values",
    [{}, {"mixed_precision": "bf16"}, {"train_method": "full"}, {"method": "ppd"}],
    ids=["lora", "bf16", "full", "user"],
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch, of the norms of queries in bfloat16
def test_without_numbers_as_many_bytes_are_kept_as_with(models, family, values):
    own = config(models[family], **values)
    assert activations(own, outlined(own), 3) == kept_in_truth(own, 3) > 0


@pytest.mark.parametrize("family", [*FAMILIES, "z_image"])  # whose prompts are taken for as long as they may be
def test_every_family_is_drawn_for_a_gpu_where_there_is_none(models, family):
    own = config(models[family])
    whole = activations(own, outlined(own, CUDA), 2)
    assert whole == activations(own, outlined(own), 2)
    half = replace(own, mixed_precision="bf16")
    on_gpu = activations(half, outlined(half, CUDA), 2)  # whose norms stay float32
    assert activations(half, outlined(half), 2) < on_gpu < whole


@pytest.mark.parametrize("family", [kind for kind in MAKERS if kind not in (*FAMILIES, "sd2", "z_image")])
def test_later_families_are_drawn_without_numbers_too(models, family):
    own = config(models[family], mixed_precision="bf16")
    assert activations(own, outlined(own, CUDA), 2) > 0


def test_drawing_for_a_gpu_leaves_mixed_precision_as_it_was(models):
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.get_default_dtype()
    own = config(models["sd"], mixed_precision="bf16")
    activations(own, outlined(own, CUDA), 2)
    assert (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.get_default_dtype()) == before


def test_rows_follow_the_switches(models):
    own = config(models["sd"], train_batch_size=3)
    plain = sizes(own)
    names = ["base weights (float32)", "trained weights (float32)", "gradients", "optimiser adamw", "activations of 6 images"]
    assert list(plain) == names
    trained = plain["trained weights (float32)"]
    assert plain["gradients"] == trained
    assert plain["optimiser adamw"] == 2 * trained
    assert sizes(replace(own, sequential_candidates=True))["activations of 3 images"] == plain["activations of 6 images"] / 2
    assert sizes(replace(own, gradient_checkpointing=True))["activations of 6 images"] < plain["activations of 6 images"] / 2
    assert weighed(replace(own, use_ema=True))["moving average"] == trained
    assert sizes(replace(own, cache="off"))["VAE and text encoders"] > 0
    assert "activations of 3 images" in sizes(replace(own, method="self_npo"))
    assert weighed(replace(own, mixed_precision="bf16"))["base weights (bfloat16)"] == plain["base weights (float32)"] / 2


def test_full_fine_tuning_has_a_second_network_where_it_compares(models):
    own = config(models["sd"], train_method="full")
    full = sizes(own)
    assert (
        full["the reference, a second network"]
        == full["trained weights (float32)"]
        == weighed(config(models["sd"]))["base weights (float32)"]
    )
    assert "the reference, a second network" not in sizes(replace(own, method="mapo"))
    half = sizes(replace(own, mixed_precision="bf16"))
    assert full["trained weights (float32)"] / 2 < half["the reference, a second network"] < 0.55 * full["trained weights (float32)"]


def test_quantised_linear_layers_are_as_small_as_their_kind(models):
    own = config(models["flux"], mixed_precision="bf16")
    plain = weighed(own)["base weights (bfloat16)"]
    linear = sum(m.weight.numel() for m in loaded(own).denoiser.modules() if type(m) is nn.Linear and not m.weight.requires_grad)
    assert sizes(replace(own, quantization="int8"))["base weights (int8, bfloat16)"] == plain - linear
    # 64 weights of half a byte, a scale of one byte, and a 256th of a scale of four.
    smaller = linear * (2 - (32 + 1 + 4 / 256) / 64)
    assert weighed(replace(own, quantization="nf4"))["base weights (nf4, bfloat16)"] == pytest.approx(plain - smaller)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_user_branch_is_counted_as_it_is_attached(models, family):
    own = config(models[family], method="ppd")
    drawn = outlined(own)
    counts = [sum(p.numel() for p in trainable(denoiser)) for denoiser in (drawn.model.denoiser, loaded(own).denoiser)]
    assert counts[0] == counts[1] > 0
    assert dict(dry_run.weights(own, recipe_of(own), drawn.model.denoiser))["trained weights (float32)"] == 4 * counts[0]
    assert "user branch with the encoder pairs" in dict(dry_run.model_rows(own, recipe_of(own), drawn))["trained"]
    half, lora = weighed(replace(own, mixed_precision="bf16")), weighed(config(models[family], mixed_precision="bf16"))
    assert half["trained weights (float32)"] == 4 * counts[0]
    assert half["base weights (bfloat16, float32)"] > lora["base weights (bfloat16)"]  # biases that stay zero, in single precision


def test_a_report_names_the_user_branch(models):
    assert "user branch with the encoder pairs" in report(config(models["sd"], method="ppd"))


@pytest.mark.parametrize("clip", [True, False], ids=["clip", "vlm"])
def test_networks_that_see_users_pairs_are_counted_by_their_configs(models, tmp_path, clip):
    if clip:
        CLIPVisionConfig(projection_dim=24, hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path / "clip")
        spec, width = {"pairs": {"features": str(tmp_path / "clip"), "hidden": 8}}, 24 * 8
    else:
        write_llava(tmp_path / "llava")
        (tmp_path / "llava" / "model.safetensors").unlink()
        spec, width = {"vlm": {"model": str(tmp_path / "llava"), "width": 8}}, 16 * 8
    encoder: Any = outlined(config(models["sd"], method="ppd", user_encoder=spec)).model.denoiser.user_encoder
    read = encoder.image[0] if clip else encoder.project
    assert read.weight.numel() == width
    assert encoder.tokens == 4  # of the settings, or the states of three layers and of the embedding


def test_where_users_are_rows_a_table_says_how_many(models, tmp_path):
    table = import_dataset(str(write_votes(tmp_path / "votes.parquet")), tmp_path / "table")
    spec = {"one_hot": {"tokens": 2, "width": 8}}
    drawn = outlined(config(models["sd"], method="ppd", user_encoder=spec, dataset_name=str(table.path)))
    assert drawn.model.denoiser.user_encoder.table.weight.shape == (2, 16)  # pyright: ignore[reportAttributeAccessIssue]
    for known, sentence in ((spec, "has a row for each user, and pairs is no table yet"), ({"vector": {"vectors": "x"}}, "does not read")):
        with pytest.raises(ConfigError, match=sentence):
            report(config(models["sd"], method="ppd", user_encoder=known))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_state_of_an_optimiser_is_as_large_as_predicted(name):
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((8, 6), (5,), (4, 3, 2, 2))]
    optimizer = make_optimizer(TrainConfig(dataset_name="pairs", optimizer=name), parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor) and v.dim()]
    assert dry_run.state_bytes(name, parameters) == sum(v.numel() * v.element_size() for v in tensors)


def test_states_of_8_bits_keep_small_tensors_whole():
    # Two states of one byte, and a scale of four bytes for each 256 of either; below 4096 numbers, two of four bytes.
    assert dry_run.state_bytes("adamw_8bit", [torch.zeros(64, 64)]) == 2 * 4096 + 2 * 4 * 16
    assert dry_run.state_bytes("paged_adamw_8bit", [torch.zeros(4095)]) == 8 * 4095


def test_a_moving_average_is_as_large_as_what_it_follows(models):
    own = config(models["sd"], use_ema=True)
    average = EMAModel([p for p in loaded(own).denoiser.parameters() if p.requires_grad])
    assert weighed(own)["moving average"] == sum(p.numel() * 4 for p in average.shadow_params)


def test_the_command_says_what_would_be_trained_and_writes_nothing(models, pairs_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    table = import_dataset(str(pairs_file), tmp_path / "table")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    before = sorted(path for path in tmp_path.rglob("*"))
    words = ["--dataset_name", table.path, "--output_dir", run, "--overwrite_output_dir", "--train_batch_size", 3, "--max_train_steps", 8]
    words += ["--gradient_accumulation_steps", 4, "--beta", 1024, "--rank", 2, "--pretrained_model_name_or_path", models["sd"]]
    assert main(["train", "--dry_run", *map(str, words)]) == 0
    assert sorted(path for path in tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    assert "(StableDiffusionPipeline, family sd)" in said
    assert "4x8x8 for 32x32 pixels" in said
    assert "records a step  24: 3 at once x 4 accumulated x 2 processes; the paper's: 2048" in said
    assert "24: 8 passes in 8 steps" in said
    assert "1024 on half the mean over 256 latent elements = 2 on their sum" in said
    assert "together" in said
    assert "An estimate" in said


def test_an_earlier_run_is_no_reason_not_to_say_it(models, pairs_file, tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    words = ["--dataset_name", str(pairs_file), "--output_dir", str(tmp_path), "--pretrained_model_name_or_path", models["sd"]]
    assert main(["train", "--dry_run", *words]) == 0
    assert "An estimate" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cache_takes_the_disk_that_a_dry_run_says(models, pairs_file, tmp_path, precision):
    table = import_dataset(str(pairs_file), tmp_path / "table")
    own = config(models["sd"], dataset_name=str(table.path), cache_precision=precision, cache_variants=2)
    recipe = recipe_of(own)
    view = View(table, [])
    expected = dry_run.cache_bytes(own, outlined(own), view)
    pairs(own, view, backbone(own, recipe, CPU))
    files = [path for path in table.path.glob("cache/*/*.npy") if not path.stem.endswith((".checks", "frames"))]
    header = 128  # of a .npy file
    assert sum(path.stat().st_size - header for path in files) == expected


def test_a_dataset_that_is_no_table_is_left_closed(models, pairs_file):
    assert f"{pairs_file} is not opened" in report(config(models["sd"], dataset_name=str(pairs_file)))


@pytest.mark.parametrize(
    ("family", "values", "error", "message"),
    [
        ("flux", {"channels_last": True}, ConfigError, "`channels_last` orders"),
        ("sd", {"attention_backend": "_native_flash"}, ConfigError, "calls PyTorch's"),
        ("sd", {"lora_layers": ["nowhere"]}, ConfigError, "`lora_layers`"),
        ("sd", {"rank": 0}, ConfigError, "`rank` is 0"),
        (None, {}, CheckpointError, "there is no such model folder"),
    ],
)
def test_what_training_would_refuse_a_dry_run_refuses(models, family, values, error, message, tmp_path):
    with pytest.raises(error, match=message):
        report(config(models[family] if family else tmp_path / "none", **values))


def test_nothing_is_compiled_and_no_kernel_asked_for(models, monkeypatch):
    monkeypatch.setattr("diffalign.methods.packages.find_spec", lambda name: name)  # as if flash_attn were installed, for another machine
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: pytest.fail("compiled"))
    own = checked(config(models["flux"], torch_compile=True, attention_backend="flash"))
    assert sizes(own) == sizes(config(models["flux"]))


@pytest.mark.parametrize(("cache", "works", "total"), [("disk", 0, "6.00 GiB"), ("disk", 7, "10.00 GiB"), ("off", 7, "5.00 GiB")])
def test_without_a_gpu_encoders_and_libraries_count_too_and_what_fills_the_cache_where_it_is_more(
    micro_sd, pairs_file, monkeypatch, cache, works, total
):
    monkeypatch.setattr(dry_run.psutil.Process, "memory_info", lambda process: SimpleNamespace(rss=2 << 30))
    monkeypatch.setattr(dry_run, "encoder_bytes", lambda outline: 1 << 30)
    monkeypatch.setattr(dry_run, "encoding", lambda outline, size: works << 30)
    own = config(micro_sd, dataset_name=str(pairs_file), cache=cache)
    monkeypatch.setattr(dry_run.torch.cuda, "is_available", lambda: False)
    sentences = dry_run.room(own, recipe_of(own), outlined(own), 3 << 30)
    assert f"about {total} in all" in sentences[0]


@pytest.mark.parametrize(("free", "fits"), [(4, True), (2, False)])
def test_whether_a_step_fits_is_told_by_what_is_free_on_the_gpu(micro_sd, pairs_file, monkeypatch, free, fits):
    monkeypatch.setattr(dry_run.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dry_run.torch.cuda, "mem_get_info", lambda: (free << 30, 8 << 30))
    own = config(micro_sd, dataset_name=str(pairs_file))
    (sentence,) = dry_run.room(own, recipe_of(own), outlined(own), 3 << 30)
    assert ("does not fit" not in sentence) is fits
    assert f"{free}.00 GiB" in sentence
    assert "8.00 GiB" in sentence
