"""A personalised run is exported as files that stock pipelines draw the same pictures with, by the code of its card."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest
import torch

import diffalign
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.infer.export.export import MARK, export_run
from diffalign.infer.export.user_card import personal_usage
from diffalign.infer.users import personal
from diffalign.infer.users.mixture import fit_weights
from tests.infer.runs import write_run
from tests.infer.user_runs import choices, write_user_run
from tests.micro_models import DRAWN, picture, stock, write_micro
from tests.paths import ASSETS
from tests.processes import apart
from tests.stock import run_snippets

FAMILIES = ["sd", "sdxl", "sd3", "flux", "pixart", "tiny-sd"]


def runnable(card: str, family: str) -> str:
    """Return the snippet of a card, told to keep a small picture of a known seed in `drawn`."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    options = f"num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type='np', **{DRAWN.get(family, {})}"
    called = re.sub(
        r'^pipe\((.*)\)\.images\[0\]\.save\("picture\.png"\)$', rf"drawn = pipe(\1, {options}).images", code, flags=re.MULTILINE
    )
    assert called != code
    return called.replace(f'"path/to/{family}"', f'"{family}"')


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return {family: (what this package draws, what stock diffusers draws from the export, what the base draws)}."""
    root = tmp_path_factory.mktemp("stock")
    (root / "tiny-sd").symlink_to(ASSETS / "tiny-sd")
    snippets, ours = {}, {}
    for family in FAMILIES:
        model = root / family if family == "tiny-sd" else write_micro(family, root / family)
        loaded = diffalign.load(write_user_run(root / f"{family}-run", model))
        ann = loaded.for_user(choices())
        ann.save(root / "ann.safetensors")
        out = export_run(loaded.folder, root / f"{family}-out", users=[root / "ann.safetensors"])
        snippets[f"{family}.npy"] = runnable((out / "README.md").read_text(), family)
        ours[family] = picture(ann, **DRAWN.get(family, {})), picture(stock(model))
    apart(root / "log", run_snippets, root, snippets)
    return {family: (mine, np.load(root / f"{family}.npy"), plain) for family, (mine, plain) in ours.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_diffusers_draws_for_a_user_as_this_package_does(pictures, family):
    mine, theirs, plain = pictures[family]
    np.testing.assert_allclose(theirs, mine, atol=1e-4)
    assert np.abs(mine - plain).max() > 1e-3


def test_an_export_holds_the_branch_its_encoder_and_the_users_and_no_path(base, tmp_path):
    run = write_user_run(tmp_path / "run", base)
    known = diffalign.load(run)
    known.for_user(choices()).save(tmp_path / "ann.safetensors")
    facts = json.loads((run / "run.json").read_text()) | {"user_encoder": {"pairs": {"features": str(tmp_path / "clip")}}}
    (run / "run.json").write_text(json.dumps(facts))
    out = export_run(run, tmp_path / "out", users=[tmp_path / "ann.safetensors"])
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == ["README.md", MARK, "ip_adapter.safetensors", "run.json", "user_encoder.safetensors", "users/ann.safetensors"]
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert b"bob" not in path.read_bytes(), path  # nor who the training users were
    told = json.loads((out / "run.json").read_text())
    assert told["user_encoder"] == {"pairs": {"features": "clip"}}
    (out / "run.json").write_text(json.dumps(told | {"base": str(base)}))
    again = diffalign.load(out)
    np.testing.assert_array_equal(again.for_user(out / "users" / "ann.safetensors").tokens, known.for_user(choices()).tokens)
    np.testing.assert_allclose(again.for_user(choices()).tokens, known.for_user(choices()).tokens, atol=1e-6)


def test_a_mixture_keeps_its_prototypes_and_forgets_its_users_in_the_export(base, tmp_path, monkeypatch):
    monkeypatch.setattr(personal, "fit_weights", functools.partial(fit_weights, steps=2, draws=1))
    run = write_user_run(tmp_path / "run", base, "mixture", prototypes=3)
    known = diffalign.load(run)
    known.for_user("bob").save(tmp_path / "one.safetensors")
    out = export_run(run, tmp_path / "out", users=[tmp_path / "one.safetensors"])
    assert not any(b"bob" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    (out / "run.json").write_text(json.dumps(json.loads((out / "run.json").read_text()) | {"base": str(base)}))
    again = diffalign.load(out)
    torch.testing.assert_close(again.encoder.logits.weight, known.encoder.logits.weight.mean(dim=0, keepdim=True))
    assert torch.equal(again.for_user(out / "users" / "one.safetensors").tokens, known.for_user("bob").tokens)
    torch.testing.assert_close(again.for_user(choices(1)).tokens, known.for_user(choices(1)).tokens)
    with pytest.raises(ConfigError, match="'bob' is no file of tokens"):
        again.for_user("bob")


def test_an_index_keeps_its_users_in_the_export_and_the_card_says_so(base, tmp_path):
    out = export_run(write_user_run(tmp_path / "run", base, "one_hot"), tmp_path / "out")
    assert "Only the users of the training can be drawn for, whose ids are in `user_encoder.safetensors`" in (out / "README.md").read_text()
    (out / "run.json").write_text(json.dumps(json.loads((out / "run.json").read_text()) | {"base": str(base)}))
    assert diffalign.load(out).for_user("bob").tokens.any()


def test_a_clip_of_open_clip_keeps_its_architecture_and_loses_its_path(base, tmp_path):
    run = write_user_run(tmp_path / "run", base, features=f"open_clip:ViT-B-32:{tmp_path}/clip.safetensors")
    out = export_run(run, tmp_path / "out")
    assert json.loads((out / "run.json").read_text())["user_encoder"]["pairs"]["features"] == "open_clip:ViT-B-32:clip.safetensors"
    assert str(tmp_path).encode() not in (out / "user_encoder.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["comfyui", "merged"])
def test_other_formats_are_refused(base, tmp_path, form):
    with pytest.raises(ConfigError, match=f"ppd .*`{form}`"):
        export_run(write_user_run(tmp_path / "run", base), tmp_path / "out", formats=["diffusers", form])
    assert not (tmp_path / "out").exists()


def test_users_of_other_runs_are_refused(base, tmp_path):
    run, other = write_user_run(tmp_path / "run", base), write_user_run(tmp_path / "other", base, hidden=8)
    diffalign.load(other).for_user(choices()).save(tmp_path / "ann.safetensors")
    with pytest.raises(CheckpointError, match="made by the user encoder"):
        export_run(run, tmp_path / "out", users=[tmp_path / "ann.safetensors"])
    with pytest.raises(ConfigError, match="a run of diffusion_dpo knows no users"):
        export_run(write_run(tmp_path / "dpo", base), tmp_path / "out", users=[tmp_path / "ann.safetensors"])
    diffalign.load(run).for_user(choices()).save(tmp_path / "ann.safetensors")
    with pytest.raises(ConfigError, match="two files have the same name"):
        export_run(run, tmp_path / "out", users=2 * [tmp_path / "ann.safetensors"])
    (run / "ip_adapter.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ip_adapter\.safetensors"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["sd", "pixart"])
def test_the_card_of_a_repository_fetches_its_files_from_there(tmp_path, family):
    text = personal_usage(["from diffusers import X"], ["pipe = X()"], family, "me/mine", ["users/ann.safetensors"])
    assert "from huggingface_hub import hf_hub_download" in text
    assert 'load_file(hf_hub_download("me/mine", "users/ann.safetensors"))' in text
    assert ('hf_hub_download("me/mine", "ip_adapter.safetensors")' in text) is (family == "pixart")
    assert 'load_file("user.safetensors")' in personal_usage([], [], "sd", "mine", [])
