"""A user branch in a file: what is read back, what is refused, and that stock pipelines draw with it as this package does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffalign.core.errors import CheckpointError
from diffalign.models.users import branch
from tests.micro_models import MAKERS, picture, stock, write_micro
from tests.models.users.denoisers import KINDS, WIDTH, answer, denoiser_of, fill, micro, users
from tests.processes import apart
from tests.stock import BRANCH, draw_for_users

STOCK = ("sd", "sdxl", "sd3", "flux")  # whose pipelines read IP-Adapters
PROMPTS = ["a red star", "a blue heart"]


def assert_same(state, other):
    assert {part: set(tensors) for part, tensors in state.items()} == {part: set(tensors) for part, tensors in other.items()}
    assert all(torch.equal(tensor, other[part][key]) for part, tensors in state.items() for key, tensor in tensors.items())


def filled(kind):
    denoiser = micro(kind)
    branch.attach(denoiser, WIDTH)
    fill(denoiser)
    return denoiser


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_and_attached_to_the_bit(kind, precision, tmp_path):
    denoiser = filled(kind)
    state = branch.state_of(denoiser)
    branch.save(denoiser, tmp_path / BRANCH, {"base": "some/model"})
    read, metadata = branch.read(tmp_path / BRANCH)
    assert metadata["base"] == "some/model"
    assert [file.name for file in tmp_path.iterdir()] == [BRANCH]
    again = micro(kind).to(precision)
    branch.attach(again, WIDTH, read)
    assert_same(read, state)
    assert_same(branch.state_of(again), state)
    if precision == torch.float32:
        with torch.no_grad():
            assert torch.equal(answer(again, users()), answer(denoiser, users()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_takes_the_place_of_an_older_one(kind):
    denoiser = filled(kind)
    state, names = branch.state_of(denoiser), [name for name, _ in denoiser.named_parameters()]
    branch.attach(denoiser, WIDTH, seed=1)
    assert sorted(names) == sorted(name for name, _ in denoiser.named_parameters())
    branch.attach(denoiser, WIDTH, state)
    assert_same(branch.state_of(denoiser), state)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_how_a_branch_begins(kind):
    states = []
    for other, seed in ((5, 1), (6, 1), (5, 2)):
        denoiser = micro(kind)
        torch.manual_seed(other)
        branch.attach(denoiser, WIDTH, seed=seed)
        states.append(branch.state_of(denoiser))
    assert_same(states[0], states[1])
    key = "proj_in.weight" if kind == "sd3" else "proj.weight" if kind == "flux" else "proj.0.weight"
    assert not torch.equal(states[0]["image_proj"][key], states[2]["image_proj"][key])


@pytest.mark.parametrize(
    ("kind", "key"),
    [("sd", "proj.0.weight"), ("sdxl", "proj.0.weight"), ("sd3", "proj_in.weight"), ("flux", "proj.weight"), ("pixart", "proj.0.weight")],
)
def test_a_branch_for_other_tokens_is_refused_by_the_key_that_shows_it(kind, key):
    state = branch.state_of(filled(kind))
    with pytest.raises(CheckpointError, match=rf"image_proj\.{key} .*{WIDTH}.*{WIDTH + 8}"):
        branch.attach(micro(kind), WIDTH + 8, state)


@pytest.mark.parametrize(("kind", "other"), [("sdxl", "sd"), ("sd", "tiny-sd"), ("flux", "sd"), ("sd", "sd3"), ("sd", "pixart")])
def test_a_branch_of_another_model_is_refused_before_anything_is_changed(kind, other):
    state, denoiser = branch.state_of(filled(kind)), micro(other)
    before = [name for name, _ in denoiser.named_parameters()]
    with pytest.raises(CheckpointError, match=r"the user branch (has|lacks) .*(image_proj|ip_adapter)\."):
        branch.attach(denoiser, WIDTH, state)
    assert before == [name for name, _ in denoiser.named_parameters()]
    assert not branch.attached(denoiser)


def test_a_missing_and_a_foreign_key_are_named():
    state = branch.state_of(filled("sd"))
    lacking = {**state, "ip_adapter": {key: value for key, value in state["ip_adapter"].items() if key != "3.to_v_ip.weight"}}
    with pytest.raises(CheckpointError, match=r"ip_adapter\.3\.to_v_ip\.weight.*UNet2D"):
        branch.attach(micro("sd"), WIDTH, lacking)
    more = {**state, "image_proj": {**state["image_proj"], "proj.9.weight": torch.ones(1)}}
    with pytest.raises(CheckpointError, match=r"image_proj\.proj\.9\.weight"):
        branch.attach(micro("sd"), WIDTH, more)


def test_files_that_hold_no_branch_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: cannot be read"):
        branch.read(tmp_path / "absent.safetensors")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(CheckpointError, match="text: cannot be read"):
        branch.read(tmp_path / "text")
    save_file({"unet.down.lora_A.weight": torch.ones(1)}, tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"lora: .*unet\.down\.lora_A\.weight.*image_proj"):
        branch.read(tmp_path / "lora")


def test_the_file_of_a_unet_has_the_keys_of_an_ip_adapter(tmp_path):
    branch.save(filled("sd"), tmp_path / "file", {})
    with safe_open(tmp_path / "file", framework="pt") as file:
        keys = set(file.keys())
    projector = {f"image_proj.proj.{place}.{leaf}" for place in (0, 2, 3) for leaf in ("weight", "bias")}
    # Four crossed attentions: one down, two up, one in the middle; the even numbers are the self-attentions'.
    assert keys == projector | {f"ip_adapter.{place}.to_{name}_ip.weight" for place in (1, 3, 5, 7) for name in "kv"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """For every family, the folder of a model, its user, and what stock pipelines in another process drew with the saved branch."""
    root = tmp_path_factory.mktemp("stock")
    for kind in STOCK:
        write_micro(kind, root / kind / "model")
        denoiser = denoiser_of(stock(root / kind / "model"))
        branch.attach(denoiser, WIDTH)
        fill(denoiser)
        branch.save(denoiser, root / kind / BRANCH, {})
        save_file({"tokens": users()[0]}, root / kind / "user.safetensors")
    apart(root / "log", draw_for_users, [root / kind for kind in STOCK])
    return root


@pytest.mark.parametrize("kind", STOCK)
def test_a_stock_pipeline_draws_with_the_file_as_this_process_does(kind, drawn):
    pipe = stock(drawn / kind / "model")
    plain = picture(pipe, PROMPTS, guidance_scale=5.0)
    denoiser = denoiser_of(pipe)
    branch.attach(denoiser, WIDTH, branch.read(drawn / kind / BRANCH)[0])
    told = branch.pipeline_arguments(pipe, users()[0], guided=True)
    ours = picture(pipe, PROMPTS, guidance_scale=5.0, **told)
    np.testing.assert_allclose(np.load(drawn / kind / "picture.npy"), ours, atol=1e-4)
    assert np.abs(ours - plain).max() > 1e-2
    for one in branch.pipeline_arguments(pipe, None, guided=True), branch.pipeline_arguments(pipe, torch.zeros(3, WIDTH), guided=True):
        if kind != "sd3" or not one:  # whose zero user is somebody
            np.testing.assert_array_equal(picture(pipe, PROMPTS, guidance_scale=5.0, **one), plain)
    with branch.disabled(denoiser):
        np.testing.assert_array_equal(picture(pipe, PROMPTS, guidance_scale=5.0, **told), plain)


@pytest.mark.parametrize("kind", STOCK)
def test_without_guidance_a_pipeline_is_told_the_user_alone(kind, drawn):
    pipe = stock(drawn / kind / "model")
    branch.attach(denoiser_of(pipe), WIDTH, branch.read(drawn / kind / BRANCH)[0])
    pictures = [picture(pipe, guidance_scale=1.0, **branch.pipeline_arguments(pipe, user, guided=False)) for user in users()]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3


def test_a_pipeline_of_pixart_is_told_nothing_of_its_own():
    pipe = MAKERS["pixart"]()
    branch.attach(pipe.transformer, WIDTH)
    assert branch.pipeline_arguments(pipe, users()[0], guided=True) == {}
    assert branch.forward_arguments(pipe.transformer, users()) == {}


def test_a_branch_with_a_number_that_is_none_or_absurd_is_refused(tmp_path):
    for odd in (float("nan"), float("inf"), 1e30):
        save_file({"ip_adapter.1.to_k_ip.weight": torch.tensor([[1.0, odd]])}, tmp_path / "branch.safetensors")
        with pytest.raises(CheckpointError, match=r"branch\.safetensors: `ip_adapter\.1\.to_k_ip\.weight`"):
            branch.read(tmp_path / "branch.safetensors")
