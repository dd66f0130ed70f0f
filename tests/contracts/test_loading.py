"""Which folders and hub ids are loaded, as which family and in which precision, and which are refused with what reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffalign.core.errors import CheckpointError
from diffalign.models.backbones.folders import LAYOUTS, check_folder, names_class
from diffalign.models.backbones.table import BACKBONES, family_of, load_backbone, load_denoiser, load_pipeline
from tests.micro_models import MODELS, write_micro

# diffusers passes on an option of hf_hub_download that its second version ignores.
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
FAMILIES = {"sd": "sd", "sdxl": "sdxl", "pixart-sigma": "pixart", "pixart-alpha": "pixart", "sd3": "sd3", "flux-dev": "flux"}


def test_every_family_has_a_layout_and_a_tiny_model_for_the_contracts():
    assert {layout.family for layout in LAYOUTS.values()} == BACKBONES.keys()
    assert BACKBONES.keys() <= {kind for kind, _ in MODELS.values()}
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert not [family for family in BACKBONES if page.count(f"| `{family}` |") != 2], "run python -m scripts.matrix"


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the model's folder, to be broken."""
    return shutil.copytree(folder, tmp_path / "broken")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a folder into an offline hub cache as revision `revision` of owner/name."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for module in ("diffusers.utils.constants", "diffusers.utils.hub_utils"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(cache), raising=False)

    def put(name, folder, revision="main", only=None):
        commit = f"{len(revision):040x}"
        repo = cache / f"models--{name.replace('/', '--')}"
        target = repo / "snapshots" / commit
        if only is None:
            shutil.copytree(folder, target)
        else:
            target.mkdir(parents=True)
            shutil.copy(folder / only, target / only)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / revision).write_text(commit)

    return put


def index_of(folder):
    return json.loads((folder / "model_index.json").read_text())


def test_a_pipeline_of_another_kind_is_refused_with_the_list_of_those_that_work(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("sd"), tmp_path / "other")
    (folder / "model_index.json").write_text(json.dumps(index_of(folder) | {"_class_name": "KandinskyPipeline"}))
    for load in (check_folder, load_pipeline, load_denoiser):
        with pytest.raises(CheckpointError, match="a KandinskyPipeline; supported are") as refusal:
            load(str(folder))
        assert all(kind in str(refusal.value) for kind in LAYOUTS)


def test_each_part_that_is_missing_is_named(broken):
    kind = index_of(broken)["_class_name"]
    layout = LAYOUTS[kind]
    parts = [name for name, value in index_of(broken).items() if names_class(value) and value[0] is not None]
    assert {layout.component, *layout.needed} <= set(parts)
    for part in parts:
        (broken / part).rename(broken / "away")
        with pytest.raises(CheckpointError, match=f"no `{part}`; a {kind}"):
            check_folder(str(broken))
        (broken / "away").rename(broken / part)
    assert check_folder(str(broken)) == kind


def test_pickled_weights_of_any_part_are_refused(broken):
    for file in sorted(broken.rglob("*.safetensors")):
        pickled = file.rename(file.with_suffix(".bin"))
        with pytest.raises(CheckpointError, match="no safetensors weights") as refusal:
            check_folder(str(broken))
        assert file.parent.name in str(refusal.value)
        pickled.rename(file)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_variant_is_loaded_by_name_and_without_it_refused(family, tmp_path):
    kind, options = MODELS[family]
    folder = write_micro(kind, tmp_path / "half", variant="fp16", **options)
    pipe = load_pipeline(str(folder), variant="fp16", dtype=torch.float16)
    assert family_of(pipe) == FAMILIES[family]
    assert next(load_denoiser(str(folder), variant="fp16").parameters()).dtype == torch.float32
    for load in (load_pipeline, load_denoiser):
        with pytest.raises(CheckpointError, match=r"fp16\.safetensors; set `variant`"):
            load(str(folder))
    with pytest.raises(CheckpointError, match=r"no weights of variant `bf16`; found .*fp16"):
        load_pipeline(str(folder), variant="bf16")


def test_a_variant_may_lie_in_pieces_and_an_encoder_may_lack_it(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("sd"), tmp_path / "mixed")
    pipe = load_pipeline(str(folder))
    shutil.rmtree(folder / "unet")
    pipe.unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="60KB")
    assert len(list((folder / "unet").glob("diffusion_pytorch_model.fp16-0000?-of-0000?.safetensors"))) > 1
    loaded = load_pipeline(str(folder), variant="fp16")
    for name in ("unet", "vae"):
        found, saved = (p.components[name].parameters() for p in (loaded, pipe))
        assert all(torch.equal(a, b) for a, b in zip(found, saved, strict=True))


def test_every_part_lies_in_the_precision_it_is_asked_in(folder):
    pipe = load_pipeline(str(folder), dtype=torch.bfloat16)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert {part.dtype for part in parts.values()} == {torch.bfloat16}
    pipe = load_pipeline(str(folder), dtype={"default": torch.bfloat16, "vae": torch.float32})
    assert {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module) and part.dtype == torch.float32} == {"vae"}
    assert {p.dtype for p in load_denoiser(str(folder)).parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_hub_id_its_index_alone_decides_the_family(family, folder_of, hub):
    hub("someone/looks-like-sd3-flux-xl", folder_of(family))
    assert check_folder("someone/looks-like-sd3-flux-xl") is None
    backbone = load_backbone("someone/looks-like-sd3-flux-xl", torch.device("cpu"))
    assert type(backbone) is BACKBONES[FAMILIES[family]]


def test_of_a_hub_id_the_revision_is_respected(folder_of, hub):
    hub("someone/model", folder_of("sd"))
    hub("someone/model", folder_of("sdxl"), revision="experimental")
    assert family_of(load_pipeline("someone/model")) == "sd"
    assert family_of(load_pipeline("someone/model", revision="experimental")) == "sdxl"
    assert load_denoiser("someone/model", revision="experimental").config.addition_embed_type == "text_time"
    with pytest.raises(CheckpointError, match="someone/model"):
        load_pipeline("someone/model", revision="elsewhere")


def test_a_hub_id_of_another_kind_is_refused_before_any_weight_is_fetched(folder_of, tmp_path, hub):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps(index_of(folder_of("sd")) | {"_class_name": "KandinskyPipeline"}))
    hub("someone/kandinsky", other, only="model_index.json")
    with pytest.raises(CheckpointError, match="a KandinskyPipeline; supported are"):
        load_pipeline("someone/kandinsky")


def test_another_autoencoder_stands_in_where_one_is_named(folder_of):
    own, other = (load_pipeline(str(folder_of("sdxl")), vae=vae) for vae in (None, str(folder_of("sd") / "vae")))
    assert own.vae.config.scaling_factor == 0.13025
    assert other.vae.config.scaling_factor == 0.18215
