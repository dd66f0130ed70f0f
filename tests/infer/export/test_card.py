"""An export's model card, its destination, and the way to the hub, which is a stand-in here: nothing touches the network."""

from __future__ import annotations

import ast
import json
import re

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from PIL import Image

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.infer.export import export
from diffalign.infer.export.export import MARK, export_run
from diffalign.infer.load import load
from tests.infer.runs import write_run
from tests.micro_models import DRAWN, picture, write_micro


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


@pytest.fixture
def run(base, tmp_path):
    """A run with its table, a report and pictures."""
    candidates = (Candidate(image=b"1"), Candidate(image=b"2"))
    records = [Record(id=str(i), prompt="a star", candidates=candidates, prob=1.0 if i else 0.5, source="x") for i in range(5)]
    facts = {"reader": "pickapic", "dataset_name": str(tmp_path / "votes.parquet"), "split": "train", "licence": "MIT"}
    table = write_table(tmp_path / "votes", records, rejected=[{"reason": "no image"}], **facts)
    folder = write_run(tmp_path / "run", base, dataset_name=str(table.path), table=table.fingerprint)
    (folder / "eval").mkdir()
    won = {
        "run": "run",
        "base": "base",
        "sign_test_p": 0.03125,
        "ci95": [0.6, 0.85],
        "win_rate": 0.725,
        "wins": 29,
        "losses": 11,
        "ties": 0,
    }
    comparisons = [won | {"scorer": "pickscore"}, won | {"scorer": "high", "win_rate": 0.9}, won | {"scorer": "mps", "win_rate": None}]
    report = {
        "command": f"diffalign eval --output_dir {folder}",
        "prompts": 40,
        "images_per_prompt": 2,
        "runs": [{"name": "base", "path": str(base)}, {"name": "run", "path": str(folder)}],
        "scorers": [{"name": name, "held_out": name != "high"} for name in ("pickscore", "high", "mps")],
        "comparisons": [*comparisons, won | {"scorer": "pickscore", "run": "another"}],
        "alarm": {"run": ["high has risen while pickscore fell"]},
        "implicit_accuracy_heldout": 0.61,
    }
    (folder / "eval" / "eval.json").write_text(json.dumps(report))
    Image.new("RGB", (2, 2), "red").save(folder / "eval" / "grid.png")
    return folder


def test_the_card_says_how_the_weights_were_made_and_what_they_gain(run, tmp_path):
    out = export_run(run, tmp_path / "out", name="mine")
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["library_name"] == "diffusers"
    assert card.data.tags == ["text-to-image", "diffusers", "diffusers-training", "lora", "diffusion-dpo"]
    assert card.data.base_model is None  # a folder is no model of the hub
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", card.text, re.MULTILINE))
    expected = {"method": "diffusion_dpo", "base": "micro-sd", "rank": "4", "lora alpha": "6", "optimiser steps": "7"}
    expected |= {"objective": '{"dpo": {"beta": 5000.0}}', "learning rate": "0.0001", "records in a step": "16", "seed": "0"}
    expected |= {"source": "votes.parquet", "split": "train", "layout": "pickapic", "rows": "5", "licence": "MIT"}
    expected |= {"strict preferences": "4", "ties": "1", "rows left out": "1", "implicit accuracy heldout": "0.61"}
    expected |= {"win rate by pickscore": "0.725 against the base (95 % interval 0.6 to 0.85; 29 won, 11 lost, 0 tied, p 0.031; held out)"}
    expected |= {"win rate by high": "0.9 against the base (95 % interval 0.6 to 0.85; 29 won, 11 lost, 0 tied, p 0.031; seen in training)"}
    expected |= {"alarm": "high has risen while pickscore fell", "win rate by mps": None}
    expected |= {"prompts": "40, 2 images of each by both models, from the same seeds"}
    assert {name: rows.get(name) for name in expected} == expected
    assert "arxiv.org/abs/2311.12908" in card.text
    assert "![pictures of this model](pictures.png)" in card.text
    assert (out / "pictures.png").read_bytes() == (run / "eval" / "grid.png").read_bytes()


def test_nothing_exported_says_where_files_lie_on_this_machine(run, base, tmp_path):
    out = export_run(run, tmp_path / "out", formats=["diffusers", "comfyui", "merged"])
    for path in (path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert str(base.parent).encode() not in content, path


def test_a_base_from_the_hub_is_linked(run, monkeypatch, tmp_path):
    facts = json.loads((run / "run.json").read_text())
    folder = facts["base"]
    (run / "run.json").write_text(json.dumps(facts | {"base": "owner/model"}))
    monkeypatch.setattr(export, "resolve", lambda name: folder if name == "owner/model" else name)
    card = ModelCard.load(export_run(run, tmp_path / "out") / "README.md")
    assert card.data.base_model == "owner/model"
    assert 'from_pretrained("owner/model")' in card.text


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_a_base_that_diffusers_cannot_read_is_refused_by_name(run, tmp_path, monkeypatch, kind):
    def load_config(*args, **options):
        raise kind("no such thing")

    monkeypatch.setattr(export.DiffusionPipeline, "load_config", load_config)
    with pytest.raises(CheckpointError, match=r"micro-sd: .*no such thing"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_table_report_and_pictures_still_has_a_card(base, tmp_path):
    out = export_run(write_run(tmp_path / "run", base, table="abc"), tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "no longer beside the run; its fingerprint is `abc`" in text
    assert "Not measured." in text
    assert not (out / "pictures.png").exists()
    assert "pictures.png" not in text


def test_a_table_that_has_changed_since_is_not_described(run, tmp_path):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"table": "another"}))
    assert "its fingerprint is `another`" in (export_run(run, tmp_path / "out") / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "method", "formats", "pushed"),
    [
        ("sd", "diffusion_dpo", ["diffusers"], False),
        ("sd", "diffusion_dpo", ["diffusers"], True),
        ("sd", "diffusion_dpo", ["merged"], False),
        ("sd", "self_npo", ["diffusers"], False),
        ("sdxl", "diffusion_npo", ["diffusers"], True),
        ("pixart", "diffusion_dpo", ["diffusers"], False),
        ("pixart", "diffusion_dpo", ["diffusers"], True),
        ("pixart", "diffusion_dpo", ["merged"], False),
        ("pixart", "diffusion_npo", ["diffusers", "comfyui"], False),
        ("sd3 without T5", "diffusion_dpo", ["diffusers"], False),
        ("sd3 without T5", "diffusion_dpo", ["merged"], True),
        ("sd3", "self_npo", ["diffusers"], False),
        ("flux", "diffusion_npo", ["diffusers"], True),
    ],
)
def test_the_snippet_of_the_card_draws_what_the_run_does(tmp_path, monkeypatch, hub, kind, method, formats, pushed):
    """On the hub or not changes one word of a snippet, so every form of snippet (plain, with peft, merged, negative) has both once."""
    model = write_micro(kind.split()[0], tmp_path / "model", **({"absent": ["text_encoder_3"]} if "without" in kind else {}))
    run = write_run(tmp_path / "run", model, method=method)
    text = (export_run(run, tmp_path / "out", formats=formats, push_to_hub=pushed, hub_model_id="out") / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    negative = method.endswith("npo")
    assert ("snapshot_download(" in code) is (negative and pushed)
    if pushed:  # what the hub's clients would fetch is here already
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo: {"me/out": "out"}[repo])
        (tmp_path / "me").mkdir()
        (tmp_path / "me" / "out").symlink_to(tmp_path / "out")
    options = {**DRAWN.get(kind, {}), "num_inference_steps": 2}
    drawn = code.replace('"a red star"', f'"a red star", generator=torch.Generator().manual_seed(3), **{options}')
    assert drawn != code
    assert str(tmp_path) not in code
    drawn = drawn.replace('"path/to/model"', f'"{model}"')
    monkeypatch.chdir(tmp_path)
    exec(compile(drawn, "card", "exec"), {"torch": torch})
    guided = {"negative_prompt": "", "true_cfg_scale": 4.0} if negative and kind == "flux" else {}
    expected = picture(load(run), **guided)[0]
    np.testing.assert_allclose(np.asarray(Image.open("picture.png")) / 255, expected, atol=1.5 / 255)


@pytest.mark.parametrize("kind", ["sd", "pixart"])
def test_a_file_for_comfyui_alone_has_no_snippet_that_would_look_for_another(tmp_path, kind):
    model = write_micro(kind, tmp_path / "model")
    for method, sentence in (("diffusion_dpo", "node to the model,"), ("self_npo", "node to only the model of the negative (uncond")):
        run = write_run(tmp_path / method, model, method=method)
        text = (export_run(run, tmp_path / f"{method}-out", formats=["comfyui"]) / "README.md").read_text()
        assert "```python" not in text
        assert sentence in text


def test_a_base_of_the_hub_is_loaded_in_the_revision_and_variant_of_the_run(base, tmp_path):
    run = write_run(tmp_path / "run", base, revision=None, variant="fp16")
    text = (export_run(run, tmp_path / "out") / "README.md").read_text()
    assert 'base = "path/to/micro-sd"' in text
    assert 'from_pretrained(base, variant="fp16")' in text


def test_pixart_is_read_by_peft_as_its_card_says(tmp_path):
    run = write_run(tmp_path / "run", write_micro("pixart", tmp_path / "model"))
    out = export_run(run, tmp_path / "out")
    assert "PeftModel.from_pretrained(pipe.transformer" in (out / "README.md").read_text()
    own, there = (json.loads((folder / "adapter_config.json").read_text()) for folder in (run, out))
    for key in ("r", "lora_alpha", "use_dora", "peft_type"):
        assert own[key] == there[key], key
    assert sorted(own["target_modules"]) == sorted(there["target_modules"])
    assert (out / "adapter_model.safetensors").read_bytes() == (run / "adapter_model.safetensors").read_bytes()


def test_a_destination_is_replaced_only_if_it_is_an_export_and_only_if_asked(base, tmp_path):
    run, out = write_run(tmp_path / "run", base), tmp_path / "out"
    out.mkdir()
    export_run(run, out, formats=["diffusers"])
    with pytest.raises(ConfigError, match=r"holds an export already; .* --overwrite"):
        export_run(run, out)
    assert not list(out.glob("*_comfyui.safetensors"))
    export_run(run, out, formats=["comfyui"], overwrite=True)
    assert json.loads((out / MARK).read_text())["formats"] == ["comfyui"]
    for other in (run, tmp_path / "file"):
        if other != run:
            other.write_text("mine")
        with pytest.raises(ConfigError, match="other things than an export"):
            export_run(run, other, overwrite=True)
    assert (run / "run.json").is_file()
    assert (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(base, tmp_path):
    run = write_run(tmp_path / "run", base)
    for options, sentence in (
        ({"formats": ["comfy"]}, "there is no `comfy`. Did you mean `comfyui`"),
        ({"dtype": "float16"}, "there is no `float16`. Known: bf16, fp16, fp32"),
        ({"name": "a/b"}, "found 'a/b'; expected letters"),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            export_run(run, tmp_path / "out", **options)
    with pytest.raises(CheckpointError, match="no finished run"):
        export_run(tmp_path, tmp_path / "out")
    (run / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_lora_weights\.safetensors"):
        export_run(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Hub:
    """Stands in for huggingface_hub.HfApi, and takes notes."""

    def __init__(self, fails=None):
        self.fails, self.calls, self.token = fails, [], None

    def __call__(self, token):
        self.token = token
        return self

    def whoami(self):
        return {"name": "me"}

    def create_repo(self, repo_id, exist_ok):
        self.calls.append(("create", repo_id, exist_ok))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.fails:
            raise self.fails
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(export, "HfApi", hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return hub


def test_a_missing_token_is_refused_before_anything_is_written(base, tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"`push_to_hub`: .*HF_TOKEN"):
        export_run(write_run(tmp_path / "run", base), tmp_path / "out", push_to_hub=True)
    assert not (tmp_path / "out").exists()
    assert not hub.calls


@pytest.mark.parametrize(
    ("wanted", "repo"), [(None, "me/micro-sd-diffusion_dpo-lora"), ("mine", "me/mine"), ("them/theirs", "them/theirs")]
)
def test_an_export_is_pushed_with_the_token_of_the_environment(base, tmp_path, hub, wanted, repo):
    out = export_run(write_run(tmp_path / "run", base), tmp_path / "out", push_to_hub=True, hub_model_id=wanted)
    assert hub.token == "hf_secret"
    assert hub.calls == [("create", repo, True), ("upload", repo, sorted(path.name for path in out.iterdir()))]
    assert f'pipe.load_lora_weights("{repo}"' in (out / "README.md").read_text()
    assert not [path for path in out.iterdir() if b"hf_secret" in path.read_bytes()]


def test_a_repository_that_the_hub_cannot_have_is_refused_before_anything_is_written(base, tmp_path, hub):
    with pytest.raises(ConfigError, match="`push_to_hub`: the hub refuses this"):
        export_run(write_run(tmp_path / "run", base), tmp_path / "out", push_to_hub=True, hub_model_id="a/b/c")
    assert not (tmp_path / "out").exists()


REFUSED = HfHubHTTPError("403", response=httpx.Response(403, request=httpx.Request("POST", "https://hub")))


@pytest.mark.parametrize("fails", [httpx.ConnectError("no route"), REFUSED])
def test_a_failed_upload_keeps_the_export_and_says_so(base, tmp_path, hub, fails):
    hub.fails = fails
    with pytest.raises(ConfigError, match=r"me/x"):
        export_run(write_run(tmp_path / "run", base), tmp_path / "out", push_to_hub=True, hub_model_id="me/x")
    assert (tmp_path / "out" / MARK).is_file()


def test_the_command_exports_and_lists_the_files(base, tmp_path, capsys):
    run, out = write_run(tmp_path / "run", base), tmp_path / "out"
    assert main(["export", "--output_dir", str(run), "--destination", str(out), "--formats", "comfyui", "--name", "mine"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in ("README.md", MARK, "mine_comfyui.safetensors")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--hub_model_id", "me/x"], "`hub_model_id` says where to upload to; add --push_to_hub"), ([], "no finished run")],
)
def test_the_command_refuses_with_a_sentence(tmp_path, capsys, words, sentence):
    assert main(["export", "--output_dir", str(tmp_path), "--destination", str(tmp_path / "out"), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_what_a_stranger_called_base_and_data_is_text_in_the_card_and_no_html_link_or_code(base, tmp_path):
    hostile = '<img src=x onerror=alert(1)> [a](http:evil) `--- | "'
    (tmp_path / hostile.replace("/", "_")).symlink_to(base)
    pair = (Candidate(image=b"1"), Candidate(image=b"2"))
    table = write_table(tmp_path / "votes", [Record("1", "a", pair, prob=1.0)], dataset_name=hostile, split=hostile, licence=hostile)
    folder = write_run(tmp_path / "run", tmp_path / hostile, dataset_name=str(table.path), table=table.fingerprint)
    facts = json.loads((folder / "run.json").read_text()) | {"revision": 'a"); import os; ("', "objective": {hostile: {}}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "eval").mkdir()
    (folder / "eval" / "eval.json").write_text(json.dumps({"implicit_accuracy_heldout": hostile + "https://me:sesame@host"}))
    card = (export_run(folder, tmp_path / "out", name="mine") / "README.md").read_text()
    text, code = re.sub(r"```.*?```", "", card, flags=re.DOTALL), re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "<img" not in text
    assert "](http" not in text.replace("](https://arxiv.org", "")
    assert "sesame" not in card
    assert ModelCard(card).data.base_model is None
    calls = [node.func for node in ast.walk(ast.parse(code[0])) if isinstance(node, ast.Call)]
    assert not [node for node in ast.walk(ast.parse(code[0])) if isinstance(node, ast.Import)]
    assert calls


def test_a_report_of_another_kind_and_a_method_that_nobody_knows_are_named(run, tmp_path):
    for report in ({"runs": 1}, {"runs": [1, 2]}, {"runs": [{}, {"name": "a"}], "scorers": 3}, {"runs": [{}, {"name": []}], "scorers": []}):
        (run / "eval" / "eval.json").write_text(json.dumps(report))
        with pytest.raises(CheckpointError, match=r"eval\.json"):
            export_run(run, tmp_path / "out", name="mine")
    facts = json.loads((run / "run.json").read_text()) | {"method": "diffusion_dpoo"}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"run\.json.*`diffusion_dpo`"):
        export_run(run, tmp_path / "out", name="mine")
