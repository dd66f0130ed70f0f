"""Every method trains on every family of models, from a folder on disk, through the command line; what cannot work says why."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors.torch import load_file

import diffalign
from diffalign.cli.main import main
from diffalign.data.table import read_table
from diffalign.methods import METHODS
from diffalign.models.backbones.folders import LAYOUTS
from diffalign.models.backbones.table import load_pipeline
from tests.edit_models import EDITS, small_references, with_inputs
from tests.micro import write_pairs
from tests.micro_models import MAKERS, SIDE, is_idle, picture, write_micro

NEGATIVE = [name for name, method in METHODS.items() if method.inference == "negative_guidance"]
# How those are really guided that are told a scale by default, or have no other way.
GUIDED = {kind: {"true_cfg_scale": 5.0, "negative_prompt": ""} for kind in ("flux", "qwen_image", "qwen_image_edit")}
FITTED = "{pairs: {fit_steps: 2, fit_batch: 8}}"  # hardly, to be quick
T5 = ("pixart", "sd3", "flux", "schnell", "chroma", "cogview4")
TOKENS = {
    **dict.fromkeys(T5, 16),
    "z_image": 48,
    "kolors": 256,
    "qwen_image": 24,
    "qwen_image_edit": 24,
    "flux_kontext": 16,
    "lumina2": 64,
    "sana": 16,
    "krea2": 24,
    "flux2": 48,
    "ernie_image": 16,
    "hidream": 24,
    "ovis_image": 48,
}  # of a prompt, with the chat around it, to be quick
# Ways of use that a family has no place for, as its layout says.
REFUSED = {
    layout.family: tuple(use for use, takes in (("user", layout.users), ("negative_guidance", layout.steers)) if not takes)
    for layout in LAYOUTS.values()
}
IMAGE = [name for name, method in METHODS.items() if method.inference != "reward"]
# All methods are trained by one family of each prediction: epsilon, v and velocity. Each other family trains one of them, in turn, and PPD,
# whose branch is the family's own; below, it trains SmPO, which inverts, and Diffusion-NPO, and in the contract tests Diffusion-DPO, which
# goes forward. A method sees a family only through its predictions, so this is every pair of what may not fit; `python -m scripts.matrix`
# trains the whole product.
WHOLE = ("sd", "sd2", "sd3")
TURNS = [name for name in IMAGE if name not in ("diffusion_dpo", "smpo", "diffusion_npo", "ppd")]
PAIRS = [(method, kind) for kind in WHOLE for method in IMAGE]
PAIRS += [
    (method, kind)
    for place, kind in enumerate(kind for kind in MAKERS if kind not in WHOLE)
    for method in (TURNS[place % len(TURNS)], "ppd")
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder in which models, table and caches lie."""
    return tmp_path_factory.mktemp("all")


@pytest.fixture(scope="module")
def table(files):
    """Pairs with scores as a table, imported once."""
    pairs = write_pairs(files / "pairs.parquet", scored=True, users=4)
    assert main(["data", "import", "--dataset_name", str(pairs), "--output_dir", str(files / "table")]) == 0
    with_inputs(read_table(files / "table"), files / "edits")
    return files / "table"


@pytest.fixture(scope="module", autouse=True)
def small():
    """Input pictures are read small."""
    with small_references():
        yield


@pytest.fixture(scope="module")
def model(files):
    """A function that gives a model's folder."""

    def find(kind):
        name, options = ("flux", {"schnell": True}) if kind == "schnell" else (kind, {})
        return files / kind if (files / kind).is_dir() else write_micro(name, files / kind, **options)

    return find


@pytest.fixture
def words(table, model, tmp_path):
    """A function that gives the command line of a training run."""

    def say(kind, method, **options):
        flags = {
            "pretrained_model_name_or_path": model(kind),
            "dataset_name": table.with_name("edits") if kind in EDITS else table,
            "method": method,
            "output_dir": tmp_path / "run",
            "resolution": SIDE,
            "max_train_steps": 2,
            "train_batch_size": 4,
            "learning_rate": 1e-2,
            "rank": 2,
            **({"max_sequence_length": TOKENS[kind]} if kind in TOKENS else {}),
            **options,
        }
        return ["train", *(word for name, value in flags.items() for word in (f"--{name}", *([] if value is True else [str(value)])))]

    return say


def log_of(run):
    """Return the rows of a run's log, which must be finite and of steps that were taken."""
    rows = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["skipped"] == 0 for row in rows)
    return rows


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_every_method_trains_every_family_or_says_why_not(words, tmp_path, capsys, kind, method):
    """The matrices that begin as zeros have learnt: an adapter's second ones, or those of a user branch."""
    personal = METHODS[method].inference == "user"
    if METHODS[method].inference in REFUSED.get(kind, ()):
        assert main(words(kind, method, **({"user_encoder": FITTED} if personal else {}))) == 2
        assert kind in capsys.readouterr().err
        return
    assert main(words(kind, method, **({"user_encoder": FITTED} if personal else {}))) == 0
    rows = log_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["grad_norm"] > 0.0 for row in rows)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["inference"] == METHODS[method].inference
    weights = load_file(tmp_path / "run" / ("ip_adapter.safetensors" if personal else "pytorch_lora_weights.safetensors"))
    values = ".to_v_ip.weight" if kind in ("sd3", "flux") else ".proj.3.weight"
    learns = [name for name in weights if name.endswith(values if personal else ".lora_B.weight") and not is_idle(name)]
    assert learns
    assert all(weights[name].abs().max() > 1e-3 for name in learns)


@pytest.mark.parametrize(
    ("kind", "train_method"),
    [
        (kind, train_method)
        for kind in MAKERS
        for train_method in ("lora", "full")
        if "negative_guidance" not in REFUSED.get(kind, ()) and (train_method == "lora" or kind in (*WHOLE, "sana"))
    ],
)
def test_a_negative_run_steers_the_stock_pipeline_of_every_family(words, model, tmp_path, kind, train_method):
    """A wholly trained one through the adapter that approximates it; with no weight it steers nothing."""
    # Validation pictures of transformers, whose branches are told apart in ways of their own; those of UNets are drawn in other tests.
    drawn = {"validation_prompts": '["a star"]'} if kind in T5 and train_method == "lora" else {}
    assert main(words(kind, "diffusion_npo", train_method=train_method, learning_rate=3e-2, **drawn)) == 0
    assert (tmp_path / "run" / "validation" / "step-000002.png").is_file() == bool(drawn)
    guided = GUIDED.get(kind, {"guidance_scale": 5.0})
    steered, unsteered = (picture(diffalign.load(tmp_path / "run", beta=beta), **guided) for beta in (1.0, 0.0))
    plain = picture(load_pipeline(str(model(kind))), **guided)
    assert np.abs(steered - plain).max() > 1e-3
    np.testing.assert_allclose(unsteered, plain, atol=1e-5)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_options_of_a_run_work_for_every_family(words, model, tmp_path, kind):
    """On an inverted trajectory, whose every step asks the family for a prediction."""
    options = {"mixed_precision": "bf16", "gradient_checkpointing": True, "gradient_accumulation_steps": 2, "train_method": "dora"}
    options |= {"cache": "off", "random_crop": True, "random_flip": True, "proportion_empty_prompts": 0.5, "use_ema": True}
    options |= {"trajectory": "{ddim_inversion: {steps: 2}}"}
    assert main(words(kind, "smpo", **options)) == 0
    assert [row["step"] for row in log_of(tmp_path / "run")] == [1, 2]
    before, after = picture(load_pipeline(str(model(kind)))), picture(diffalign.load(tmp_path / "run"))
    assert np.isfinite(after).all()
    assert np.abs(before - after).max() > 0.0


@pytest.mark.parametrize("method", NEGATIVE)
def test_a_model_without_guidance_is_refused_for_negative_guidance(words, capsys, method):
    assert main(words("schnell", method)) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "Flux schnell is distilled to draw in a few steps without guidance" in said
