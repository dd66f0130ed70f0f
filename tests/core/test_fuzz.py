"""Files and answers that are broken at random places: one of our errors, nothing written elsewhere, no socket.

What is broken follows from the seed of each round. The socket guard of the suite refuses connections, and that is no error of ours.
"""

from __future__ import annotations

import copy
import json
import random
import struct

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diffalign.core import tensor_files
from diffalign.core.errors import DiffalignError
from diffalign.core.runs import Run
from diffalign.core.trust import Untrusted, refuse
from diffalign.data.records import Candidate, Record
from diffalign.data.table import MANIFEST, read_table, write_table
from diffalign.evaluate.panel import panel
from diffalign.infer.export.card import Base, RunFiles, model_card
from diffalign.methods.checks import check_keys
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.models.backbones.folders import LAYOUTS
from diffalign.rewards.heads.networks import HeadSizes
from diffalign.rewards.heads.settings import PalSettings
from diffalign.rewards.heads.store import load_head, save_head
from diffalign.rewards.heads.table import make
from diffalign.rewards.scorers.http import scorer_by
from diffalign.rewards.table import called
from tests.killing import tree

ALIEN = [
    None,
    True,
    -1,
    0,
    3.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "\x00",
    "\ud800",
    "x" * 10_000,
    [],
    [[]],
    {},
    {"x": 1},
]
ALIEN += [{"function": {"path": "evil:f"}}, {"http": {"url": "http://127.0.0.1:9", "name": "x"}}, [{"a": [None]}], {"a": {"b": {}}}]
RUN = {
    "base": "assets/tiny-sd",
    "revision": None,
    "kind": "image",
    "component": "unet",
    "method": "diffusion_dpo",
    "inference": "plain",
    "train_method": "lora",
    "mixed_precision": "no",
    "scorers": {"specs": {"high": {"taste": {"name": "high"}}}, "ranked_by": ["high"]},
    "table": "abc",
    "steps": 10,
    "objective": {"dpo": {"beta": 5000.0}},
    "rounds": [{"seed": 0}],
    "best": {"step": 5, "held_out": 0.1},
}
CONFIG = {
    "method": "smpo",
    "dataset_name": "votes",
    "transforms": ["pairs", {"soft_label": {"score": "high", "low": 0.0, "high": 1.0}}, "orient"],
    "objective": {"smpo": {"beta": 2000.0}},
    "trajectory": {"ddim_inversion": {"steps": 2}},
    "scores": {},
    "eval_every": 10,
    "eval_prompts": ["a star"],
    "eval_scorers": ["adherence", {"hps": {"version": "2.0"}}],
    "eval_reward": {"taste": {"name": "high"}},
    "learning_rate": 1e-5,
    "rank": 4,
    "lora_layers": ["to_q"],
    "aspect_ratio_buckets": "64,64;32,128",
}
REPORT = {
    "prompts": 4,
    "images_per_prompt": 2,
    "runs": [{"name": "base"}, {"name": "run"}],
    "scorers": [{"name": "high", "held_out": True}],
    "comparisons": [{"run": "run", "scorer": "high", "win_rate": 0.7, "ci95": [0.6, 0.8], "sign_test_p": 0.03}],
    "alarm": {"run": ["it rang"]},
    "implicit_accuracy_heldout": 0.6,
}


def broken(value, rng):
    """Return a copy of a JSON value of which one to three parts are alien, missing or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        inner, holder, key = value, None, None
        while isinstance(inner, dict | list) and inner and (holder is None or rng.random() < 0.6):
            holder, key = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = holder[key]
        if holder is None:
            return rng.choice(ALIEN)
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.2 and isinstance(holder, list):
            holder.append(rng.choice(ALIEN))
        else:
            holder[key] = copy.deepcopy(rng.choice(ALIEN))
    return value


def torn(text, rng):
    """Return bytes with a few of them changed, left out, doubled or cut off."""
    data = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        data[place : place + rng.choice((0, 1, 4))] = rng.choice(
            (b"", b"\x00", b"{", b"]", b'"', b"\xff", b"&a ", b"*a", b"- ", b"!!x ", b"9" * 30)
        )
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def survive(rounds, attempt):
    """Make `rounds` attempts, each with its own random numbers; only our errors may leave them. Return how many were refused."""
    messages = []
    for seed in range(rounds):
        try:
            attempt(random.Random(seed))
        except DiffalignError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}"[:500]) from error
    assert max(map(len, messages)) < 3_000
    return len(messages)


def as_json(value, rng):
    text = json.dumps(value).encode()
    return torn(text, rng) if rng.random() < 0.3 else text


def test_runs_that_are_broken_are_refused_or_judged_and_described(tmp_path):
    folder = tmp_path / "run"
    (folder / "eval").mkdir(parents=True)
    files = {"run.json": RUN, "config.yaml": CONFIG, "eval/eval.json": REPORT}
    base = Base(kind="StableDiffusionPipeline", layout=LAYOUTS["StableDiffusionPipeline"], absent=())

    def attempt(rng):
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value))  # JSON is YAML
        name = rng.choice(list(files))
        (folder / name).write_bytes(as_json(broken(files[name], rng), rng))
        before = tree(tmp_path)
        try:
            run = Run.open(folder)
            panel(["a red star"], [run], scorers=["adherence"])
            model_card(RunFiles.read(run), name="mine", repo="mine", base=base, formats=["diffusers"])
        finally:
            assert tree(tmp_path) == before

    assert 20 < survive(150, attempt) < 150


def test_configs_that_are_broken_are_refused_or_mean_something(tmp_path):
    file = tmp_path / "config.yaml"

    def attempt(rng):
        text = yaml.safe_dump(broken({**CONFIG, **({"base": "other.yaml"} if rng.random() < 0.1 else {})}, rng)).encode(errors="replace")
        file.write_bytes(torn(text, rng) if rng.random() < 0.5 else text)
        values = load_yaml(file)
        assert isinstance(values, dict)
        config = from_mapping(values, str(file))
        check_keys(config)
        refuse([config.eval_reward, config.eval_scorers])

    assert 20 < survive(60, attempt) < 60


def test_manifests_that_are_broken_are_refused_or_read(tmp_path):
    records = [Record("1", "a", (Candidate(image=b"1", scores={"high": 0.5}), Candidate(image=b"2", scores={"high": 1.0})), prob=1.0)]
    about = {"name": "high", "spec": {"taste": {"name": "high"}}, "scale": "a share", "unit": "share"}
    table = write_table(tmp_path / "t", records, scorers=[about], generated={"rank_by": "high"}, reader="pickapic", dataset_name="x")
    whole = json.loads((table.path / MANIFEST).read_text())

    def attempt(rng):
        (table.path / MANIFEST).write_bytes(as_json(broken(whole, rng), rng))
        found = read_table(table.path)
        assert (len(found), found[0].prompt) == (1, "a")
        for scorer in found.manifest.get("scorers") or ():
            called(scorer.get("spec", scorer["name"]))

    assert 20 < survive(200, attempt) < 200


def test_safetensors_that_are_broken_are_refused_or_hold_what_they_say(tmp_path):
    file = tmp_path / "head.safetensors"
    save_head(make(PalSettings(hidden=4, width=4), HeadSizes(8, 4, ("ann", "bob"))), file, embeds="abc", beta=1.0)
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])

    def attempt(rng):
        text = as_json(broken(header, rng), rng)
        data = struct.pack("<Q", rng.choice((len(text),) * 8 + (0, 2**40, 2**63))) + text + whole[8 + size :]
        file.write_bytes(data if rng.random() < 0.7 else torn(whole, rng))
        tensors, facts = tensor_files.read(file)
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())
        assert all(isinstance(value, str) for value in facts.values())
        head, _, beta = load_head(file)
        assert np.isfinite(beta)
        assert all(value.isfinite().all() for value in head.state_dict().values())

    assert survive(200, attempt) > 50


def test_answers_of_scorers_that_are_broken_are_refused_or_numbers(tmp_path):
    images, prompts = [Image.new("RGB", (2, 2))] * 3, ["a", "b", "c"]

    def attempt(rng):
        answer = as_json(broken({"scores": [0.5, None, 1]}, rng), rng)
        scores = scorer_by(lambda *_: answer, url="http://host", name="x", scale="", timeout=1.0)(images, prompts)
        assert scores.shape == (3,)
        assert not np.isinf(scores).any()

    assert survive(200, attempt) > 50


def test_a_spec_of_any_shape_that_a_file_names_is_refused_or_bound(tmp_path):
    def attempt(rng):
        spec = broken([{"taste": {"name": "high"}}, {"hps": {"version": "2.0"}}, {"trained": {"path": "x", "user": "y"}}], rng)
        for one in spec if isinstance(spec, list) else [spec]:
            called(Untrusted(one) if isinstance(one, dict) else one)

    assert survive(200, attempt) > 20


@pytest.fixture(autouse=True)
def no_write_elsewhere(tmp_path, monkeypatch):
    """Stand in an empty folder, which stays empty."""
    work = tmp_path.with_name(tmp_path.name + "-work")
    work.mkdir()
    monkeypatch.chdir(work)
    yield
    assert tree(work) == {}
