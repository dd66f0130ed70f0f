"""A vision-language model's states are those its last token came from, whichever family it is of, and are computed once for a user."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2Config

from diffalign.core.errors import CheckpointError, TableError
from diffalign.models.users.choices import Choice
from diffalign.models.users.vlm import VlmStates, cached
from tests.models.users.vlm_models import LAYERS, TEMPLATES, WIDTH, tokenizer, write_llava, write_qwen

WRITERS = {"llava": write_llava, "qwen": write_qwen}
FEW = 6  # tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random model of each family."""
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def choices():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (20, 20 + 8 * wide, 3), dtype=np.uint8)) for wide in range(4)]
    return [Choice("red star", images[0], images[1]), Choice("star", images[2], images[3])]


def load(folder, **settings):
    return VlmStates(str(folder), **{"max_new_tokens": FEW} | settings)


def ending_at_once(folder, states, choices):
    """Make the first token that the model writes the one that ends a text."""
    first = states._model.generate(**states._inputs(choices), max_new_tokens=1, do_sample=False)[0, -1]
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [0, int(first)]}))


def by_hand(folder, choices, steps):
    """Return the states that the last of `steps` likeliest tokens comes from, and all of them as text; nothing is kept between passes."""
    processor, network = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs, written = load(folder)._inputs(choices), []
    for _ in range(steps):
        with torch.no_grad():
            found = network(**inputs, output_hidden_states=True, use_cache=False)
        written.append(int(found.logits[0, -1].argmax()))
        for name, value in {"input_ids": written[-1], "attention_mask": 1, "mm_token_type_ids": 0}.items():
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
    states = torch.stack([layer[0, -1] for layer in found.hidden_states])
    return states, processor.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("steps", [1, FEW])
def test_states_are_those_of_every_layer_where_the_last_token_came_from(folder, choices, steps):
    states, text = load(folder, max_new_tokens=steps)(choices)
    expected, written = by_hand(folder, choices, steps)
    assert states.shape == expected.shape == (LAYERS + 1, WIDTH)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert text == written.strip()


def test_rows_are_the_layers_and_the_embedding(folder):
    states = load(folder)
    assert (states.rows, states.width) == (LAYERS + 1, WIDTH)


def test_a_text_that_ends_early_has_the_states_of_its_end(tmp_path, choices):
    write_llava(tmp_path)
    ending_at_once(tmp_path, load(tmp_path), choices)
    states, _ = load(tmp_path)(choices)
    torch.testing.assert_close(states, by_hand(tmp_path, choices, 1)[0], atol=1e-4, rtol=1e-4)


def test_the_same_choices_give_the_same_states_and_others_do_not(folder, choices):
    states = load(folder)
    first, text = states(choices)
    again, same = load(folder)(choices)
    assert torch.equal(first, again)
    assert text == same
    swapped = [Choice(c.prompt, c.dispreferred, c.preferred) for c in choices]
    for others in (choices[::-1], choices[:1], swapped, [Choice("star star", choices[0].preferred, choices[0].dispreferred), choices[1]]):
        assert (states(others)[0] - first).abs().max() > 1e-3


def test_half_precision_gives_single_precision_states_without_gradient(folder, choices):
    states, _ = load(folder, dtype=torch.bfloat16)(choices)
    assert (states.dtype, states.requires_grad) == (torch.float32, False)
    assert torch.equal(states, states.bfloat16().float())  # they were computed in the precision that was asked for
    assert states.isfinite().all()


def words(states, choices):
    """Return what the model reads, one placeholder for each picture."""
    ids = states._inputs(choices)["input_ids"][0]
    shown = [word for word in states._processor.tokenizer.convert_ids_to_tokens(ids) if word != "<unk>"]
    token = states._processor.image_token
    return [word for place, word in enumerate(shown) if word != token or shown[place - 1] != token]


def test_every_picture_stands_behind_its_label(folder, choices):
    # LLaVA-OneVision's own template would put the four pictures first
    states = load(folder)
    said = [word for word in words(states, choices) if word in ("preferred", "dispreferred", states._processor.image_token)]
    token = states._processor.image_token
    assert said[:8] == ["preferred", token, "dispreferred", token] * 2
    assert token not in said[8:]


def test_a_prompt_cannot_stand_for_a_picture(folder, choices):
    states = load(folder)
    token = states._processor.image_token
    written = [Choice(f"star {token}", choices[0].preferred, choices[0].dispreferred)]
    assert words(states, written) == words(states, [Choice("star ", choices[0].preferred, choices[0].dispreferred)])


def test_a_chat_is_opened_once_where_the_template_and_the_tokenizer_both_do(folders, choices):
    states = load(folders["qwen"])
    spelling = states._processor.tokenizer
    plain = states._inputs(choices)["input_ids"]
    spelling.bos_token = "<|im_start|>"
    spelling.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 2)])
    assert torch.equal(states._inputs(choices)["input_ids"], plain)


def test_a_template_that_loses_pictures_is_refused(tmp_path, choices):
    states = load(write_llava(tmp_path, template="{% for message in messages %}<image>{% endfor %}"))
    with pytest.raises(CheckpointError, match=r"chat template .*`<image>`"):
        states(choices)


def test_a_text_that_is_cut_off_is_said_to_be(tmp_path, choices, caplog):
    write_llava(tmp_path)
    states = load(tmp_path)
    with caplog.at_level(logging.WARNING, "diffalign"):
        states(choices)
    assert f"{tmp_path}: the description of this user was cut off after {FEW} tokens" in caplog.text
    ending_at_once(tmp_path, states, choices)
    caplog.clear()
    load(tmp_path)(choices)
    assert caplog.text == ""


def test_a_fingerprint_is_of_the_weights_the_chat_and_its_length(tmp_path, folders):
    write_llava(tmp_path / "same")
    write_llava(tmp_path / "other", seed=1)
    write_llava(tmp_path / "chat", template=TEMPLATES["llava"] + " ")
    prints = [load(folder).fingerprint for folder in (folders["qwen"], tmp_path / "other", tmp_path / "chat", tmp_path / "same")]
    prints.append(load(tmp_path / "same", max_new_tokens=FEW + 1).fingerprint)
    assert len(set(prints)) == 5
    assert load(folders["llava"]).fingerprint == prints[3]


def test_a_processor_without_a_chat_template_is_refused_before_weights_are_read(tmp_path):
    write_qwen(tmp_path, template=None)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="its processor has no chat template"):
        load(tmp_path)


def test_a_model_without_an_image_processor_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    write_qwen(tmp_path)
    for file in ("model.safetensors", "processor_config.json"):
        (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match="loaded from here: Can't load image processor"):
        load(tmp_path)
    # some families fall back to their tokenizer instead of failing
    monkeypatch.setattr("diffalign.models.users.vlm.AutoProcessor.from_pretrained", lambda name, **settings: tokenizer())
    with pytest.raises(CheckpointError, match=r"its processor \(\w+\) takes no pictures"):
        load(tmp_path)


def test_a_language_model_is_refused(tmp_path):
    Qwen2Config(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="type `qwen2`"):
        load(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config"}}))
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="no vision-language model"):
        load(tmp_path)


def test_weights_that_are_pickled_missing_or_not_all_there_are_refused(tmp_path):
    write_llava(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    some = {name: value for name, value in weights.items() if "lm_head" not in name}
    save_file(some, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"LlavaOnevisionForConditionalGeneration .*lm_head"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no vision-language model"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere: .*vision-language"):
        load(tmp_path / "nowhere")


@pytest.fixture
def counted(folders, monkeypatch):
    """A model that lists how many choices it was asked about, each time."""
    states, asked, ask = load(folders["llava"]), [], VlmStates.__call__

    def count(self, choices):
        asked.append(len(choices))
        return ask(self, choices)

    monkeypatch.setattr(VlmStates, "__call__", count)
    return states, asked


def test_a_users_states_are_computed_once(counted, choices, tmp_path):
    states, asked = counted
    expected, text = states(choices)
    assert torch.equal(cached(states, tmp_path / "new", "a/../b", choices), expected)
    assert torch.equal(cached(states, tmp_path / "new", "a/../b", choices), expected)
    assert asked == [2, 2]
    (file,) = (tmp_path / "new").iterdir()
    assert file.suffix == ".safetensors"
    with safe_open(file, "pt") as stored:
        assert text.strip()
        assert text not in stored.metadata().values()  # what was said of somebody is nobody else's to read


def test_another_user_choice_order_or_model_is_computed_anew(counted, choices, tmp_path, folders):
    states, asked = counted
    other = [Choice("red star", choices[0].preferred, choices[1].preferred), choices[1]]
    for key, some in (("a", choices), ("b", choices), ("a", choices[:1]), ("a", choices[::-1]), ("a", other)):
        cached(states, tmp_path, key, some)
    cached(load(folders["llava"], max_new_tokens=1), tmp_path, "a", choices)
    assert asked == [2, 2, 1, 2, 2, 2]
    assert len(list(tmp_path.iterdir())) == 6


def test_a_damaged_file_is_named(counted, choices, tmp_path):
    states, _ = counted
    cached(states, tmp_path, "a", choices)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(TableError, match=rf"{file.name}: damaged"):
        cached(states, tmp_path, "a", choices)
