"""The scorer by a finished run, against the errors of stock networks and the log-probabilities of a stock language model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.sampler import sample_generator
from diffalign.data.table import write_table
from diffalign.data.transforms.labels import relabel
from diffalign.models.adapters import add_lora, load_lora, load_peft, save_peft
from diffalign.rewards.score_table import score_table
from diffalign.rewards.table import check_scorers, load_scorer
from tests.infer.runs import write_run
from tests.micro_models import stock
from tests.models.text.models import folder, llama, tokenizer

BETA, DRAWS, SEED = 5000.0, 3, 4


@pytest.fixture(scope="module")
def run(micro_sd, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", micro_sd)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(2)]


@torch.no_grad()
def by_stock_parts(micro_sd, run, image, prompt):
    """Return beta times the mean over draws of half the difference of the two networks' errors."""
    base, tuned = stock(micro_sd), stock(micro_sd)
    load_lora(tuned, run, "unet")
    side = base.unet.config.sample_size * base.vae_scale_factor
    left = (image.width * side // image.height - side) // 2
    scaled = image.resize((image.width * side // image.height, side), Image.Resampling.BILINEAR).crop((left, 0, left + side, side))
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    x0 = base.vae.encode(pixels).latent_dist.mean * base.vae.config.scaling_factor
    words = base.encode_prompt(prompt, "cpu", 1, False)[0]
    total = 0.0
    for draw in range(DRAWS):
        generator = sample_generator(SEED, draw)
        t = torch.randint(base.scheduler.config.num_train_timesteps, (1,), generator=generator)
        noise = torch.randn(x0.shape[1:], generator=generator)[None]
        noisy = base.scheduler.add_noise(x0, noise, t)
        errors = [(pipe.unet(noisy, t, words).sample - noise).square().mean().item() for pipe in (tuned, base)]
        total += -0.5 * (errors[0] - errors[1]) / DRAWS
    return BETA * total


def test_a_picture_has_beta_times_half_the_difference_of_errors_over_fixed_draws(micro_sd, run, pictures):
    scorer = load_scorer({"implicit": {"path": str(run), "draws": DRAWS, "seed": SEED}})
    scores = scorer(pictures, ["a red star", "a blue square"])
    expected = [by_stock_parts(micro_sd, run, *pair) for pair in zip(pictures, ["a red star", "a blue square"], strict=True)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-3)
    assert abs(expected[0] - expected[1]) > 1.0
    # Whatever is scored beside it, a picture keeps its score: times and noise belong to the draw.
    assert scorer(pictures[1:], ["a blue square"]).tolist() == pytest.approx(scores[1:].tolist(), rel=1e-4)
    assert scorer([], []).shape == (0,)


def test_all_weights_that_a_run_trained_are_its_network(micro_sd, tmp_path, pictures):
    full = write_run(tmp_path / "full", micro_sd, train_method="full")
    one, other = (load_scorer({"implicit": {"path": str(full), "draws": 1, "beta": beta}})(pictures[:1], ["a star"]) for beta in (1, 10))
    assert other[0] == pytest.approx(10.0 * one[0])
    assert one[0] != 0.0


def test_what_nobody_voted_on_is_labelled_by_the_run(run, pictures, tmp_path):
    pair = Record("0", "a star", tuple(Candidate(image=encode_image(image)) for image in pictures), source="row 0")
    spec = {"implicit": {"path": str(run), "draws": 2}}
    (scored,) = score_table(write_table(tmp_path / "table", [pair]), tmp_path / "scored", [spec])
    first, second = (candidate.scores["implicit"] for candidate in scored.candidates)
    (soft,) = relabel(scored, score="implicit", temperature=1.0)
    assert soft.prob == pytest.approx(1.0 / (1.0 + math.exp(-abs(first - second))))
    assert [c.scores["implicit"] for c in soft.candidates] == sorted([first, second], reverse=True)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """Return a run of a language model, whose adapter is random."""
    root, words = tmp_path_factory.mktemp("writer"), tokenizer()
    network = llama(len(words))
    folder(root / "lm", network, words)
    add_lora(network, targets=["q_proj", "v_proj"], rank=2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    (root / "run").mkdir()
    save_peft(network, root / "run", str(root / "lm"))
    facts = {"base": str(root / "lm"), "kind": "text", "method": "dpo", "train_method": "lora", "component": "model"}
    (root / "run" / "run.json").write_text(json.dumps(facts | {"objective": {"dpo": {"beta": 0.5}}, "max_length": 24}))
    return root


@torch.no_grad()
def test_a_text_has_beta_times_the_difference_of_log_probabilities(writer, tmp_path):
    from transformers import AutoModelForCausalLM

    texts = [" near the top", " at the bottom"]
    records = [
        Record("0", "a star", tuple(Candidate(text=text) for text in texts), source="row 0"),
        Record("1", "a star " * 30, (Candidate(text=" cut"),), source="row 1"),
    ]
    spec = {"implicit": {"path": str(writer / "run")}}
    scored = score_table(write_table(tmp_path / "table", records), tmp_path / "scored", [spec])
    base, tuned = (AutoModelForCausalLM.from_pretrained(writer / "lm") for _ in range(2))
    load_peft(tuned, writer / "run")
    words, expected = tokenizer(), []
    for text in texts:
        prompt, whole = words("a star")["input_ids"], words(f"a star{text}{words.eos_token}")["input_ids"]
        sums = []
        for network in (tuned, base):
            logits = network(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(logits[place - 1, whole[place]].item() for place in range(len(prompt), len(whole))))
        expected.append(0.5 * (sums[0] - sums[1]))
    assert [c.scores["implicit"] for c in scored[0].candidates] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0]) > 1e-3
    assert scored[1].candidates[0].scores == {}  # its prompt alone fills the run's max_length


def test_pictures_and_texts_are_not_mixed_up(run, writer, pictures, tmp_path):
    text = write_table(tmp_path / "texts", [Record("0", "a", (Candidate(text="b"),), source="row 0")])
    with pytest.raises(TableError, match="a table of texts, which `implicit` does not judge"):
        score_table(text, tmp_path / "scored", [{"implicit": {"path": str(run)}}])
    with pytest.raises(ConfigError, match="judges texts; found 2 images"):
        load_scorer({"implicit": {"path": str(writer / "run")}})(pictures, ["a", "b"])


def test_a_run_that_has_no_such_log_ratio_is_refused_before_it_loads(micro_sd, run, tmp_path):
    steers = write_run(tmp_path / "npo", micro_sd, method="diffusion_npo")
    with pytest.raises(ConfigError, match="a run of diffusion_npo"):
        check_scorers([{"implicit": {"path": str(steers)}}])
    with pytest.raises(CheckpointError, match="no finished run"):
        check_scorers([{"implicit": {"path": str(tmp_path)}}])
    with pytest.raises(ConfigError, match="`noisiest` is 0"):
        load_scorer({"implicit": {"path": str(run), "noisiest": 0.0}})
    with pytest.raises(ConfigError, match="`draws` is 0"):
        load_scorer({"implicit": {"path": str(run), "draws": 0}})
