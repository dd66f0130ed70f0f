"""HPSv3 (2508.03789): a Qwen2-VL that reads picture and instruction, and a head on its state at one token, which gives mean and spread.

Facts of the authors' release: names of the weights, the head's layers, the token `<|Reward|>`, one image of 256 patches, and positions that
count on through picture and text (not Qwen2-VL's own three). The instruction that the weights were trained with is the authors' text: it
is read from a file, which their package has (`INSTRUCTION` and `prompt_with_special_token`, one after the other).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.colours import flattened
from diffalign.models.users.vlm import chat, checked, encoded
from diffalign.models.weights import UNREADABLE
from diffalign.rewards.scorers.chat import DTYPES
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.network import fill, frozen, read_weights

REWARD = "<|Reward|>"
PLACES = ("{prompt}", "{text_prompt}")  # where the prompt stands; the second is the release's
PATCHES = 256  # of a picture, whatever its size: 448 by 448 pixels, if it is square
NAMES = (("visual.", "visual."), ("model.", "language_model."))  # the release's, and those of transformers


def hpsv3(
    *,
    instruction: str,
    model: str = "MizzenAI/HPSv3",
    processor: str = "Qwen/Qwen2-VL-7B-Instruct",
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    revision: str | None = None,
    device: str = "cpu",
) -> CallableScorer:
    """Return HPSv3: the mean of the preference score that it predicts, about -5 to 15; prompts are read whole.

    `instruction` is a text file with {prompt} and <|Reward|> in it; `model` a file, or a folder or hub id with HPSv3.safetensors;
    `processor` gives the Qwen2-VL's config and processor. Raises ConfigError for another file, CheckpointError for other weights.
    """
    words = _instruction(instruction)
    network, head, reader = _loaded(model, processor, dtype, revision)
    for part in (network, head):
        frozen(part, device)
    token = reader.tokenizer.convert_tokens_to_ids(REWARD)
    side = reader.image_processor.patch_size * reader.image_processor.merge_size
    size = {"shortest_edge": PATCHES * side**2, "longest_edge": PATCHES * side**2}
    reader.image_processor.size = size

    @torch.no_grad()
    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            inputs = encoded(reader, [_asked(reader, words, prompt)], [[flattened(image)]]).to(device, network.dtype)
            states = _states(network, inputs)[inputs["input_ids"] == token]
            scores.append(float(head(states[0].float())[0]))
        return scores

    scale = "mean of a predicted preference, usually -5 to 15; compares images of one prompt"
    return CallableScorer("hpsv3", scale, score, model, licence="MIT", revision=revision, unit="preference")


def _states(network: Any, inputs: Any) -> Tensor:
    """Return the states (1, L, D) behind the last layer, of positions that count on from 0."""
    ids = inputs["input_ids"]
    embeds = network.language_model.embed_tokens(ids)
    seen = network.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    there = (ids == network.config.image_token_id).unsqueeze(-1).expand_as(embeds)
    embeds = embeds.masked_scatter(there, torch.cat(tuple(seen)).to(embeds.dtype))
    places = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
    return network.language_model(inputs_embeds=embeds, position_ids=places).last_hidden_state


def _loaded(model: str, processor: str, dtype: str, revision: str | None) -> tuple[Any, nn.Module, Any]:
    """Return the Qwen2-VL without its language head, the reward's head in float32, and the processor with the reward's token."""
    weights = read_weights(model, "HPSv3.safetensors", revision)
    try:
        _, reader = checked(processor, None)
        config: Any = AutoConfig.from_pretrained(processor, trust_remote_code=False)
        reader.tokenizer.add_tokens([REWARD], special_tokens=True)
        config.text_config.vocab_size = len(weights["model.embed_tokens.weight"])
        own = weights["model.embed_tokens.weight"].dtype if dtype == "auto" else DTYPES[dtype]
        network = AutoModel.from_config(config, dtype=own)
    except UNREADABLE as error:
        raise CheckpointError(f"{processor}: no Qwen2-VL that HPSv3 could be made of can be loaded from here: {error}") from error
    if len(reader.tokenizer) > config.text_config.vocab_size:
        raise CheckpointError(f"{model}: its vocabulary has no place for {REWARD}; expected the weights of HPSv3, and its own processor")
    body = {new + key.removeprefix(old): value for key, value in weights.items() for old, new in NAMES if key.startswith(old)}
    fill(network, body, model)
    top = {key.removeprefix("rm_head."): value.float() for key, value in weights.items() if key.startswith("rm_head.")}
    width = config.text_config.hidden_size
    head = nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )  # dropout does nothing here but keep the names of the layers behind it
    fill(head, top, model)
    return network, head, reader


def _instruction(file: str) -> str:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"scorer `hpsv3`: `instruction` {file} cannot be read ({type(error).__name__})") from error
    if text.count(REWARD) != 1 or not any(place in text for place in PLACES):
        raise ConfigError(f"scorer `hpsv3`: {file} is no instruction; expected {{prompt}} and one {REWARD} in it")
    return text


def _asked(reader: Any, instruction: str, prompt: str) -> str:
    """Return the chat; placeholder and reward token are no prompt's to write."""
    for token in (reader.image_token, REWARD):
        prompt = prompt.replace(token, "")
    before, _, after = next(instruction.partition(place) for place in PLACES if place in instruction)
    return chat(reader, [{"type": "image"}, {"type": "text", "text": before + prompt + after}])
