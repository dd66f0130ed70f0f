"""VQAScore (2404.01291): the chance that a vision-language model answers Yes when asked whether an image shows its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.colours import flattened
from diffalign.models.users.vlm import chat, checked, encoded
from diffalign.models.weights import UNREADABLE, whole
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.network import frozen

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # the paper's
DTYPES = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def vqascore(
    *,
    model: str,
    question: str = QUESTION,
    answer: str = "Yes",
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    revision: str | None = None,
    device: str = "cpu",
) -> CallableScorer:
    """Return VQAScore by any image-text-to-text model of transformers with a chat template: the probability of the first token of `answer`.

    The paper's own model, CLIP-FlanT5, has none, and other models give other numbers. `{}` in `question` is the prompt; it is read whole.
    Raises ConfigError for a question without `{}`, CheckpointError for a model that is missing or takes no images.
    """
    if "{}" not in question:
        raise ConfigError(f"scorer `vqascore`: `question` is {question!r}; expected {{}} where the prompt stands")
    try:
        _, processor = checked(model, revision)
        network = whole(AutoModelForImageTextToText, model, revision, dtype=DTYPES[dtype])
    except UNREADABLE as error:
        raise CheckpointError(f"{model}: no vision-language model can be loaded from here: {error}") from error
    frozen(network, device)
    yes = processor.tokenizer.encode(answer, add_special_tokens=False)[0]
    scale = f"probability in [0, 1] that {model} answers {answer} to {question!r}"

    @torch.no_grad()
    def ask(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        chances = []
        for image, prompt in zip(images, prompts, strict=True):
            inputs = encoded(processor, [_asked(processor, question, prompt)], [[flattened(image)]]).to(device, network.dtype)
            chances.append(float(network(**inputs).logits[0, -1].double().softmax(dim=-1)[yes]))
        return chances

    return CallableScorer("vqascore", scale, ask, model, licence="the model's own", revision=revision, unit="probability")


def _asked(processor: Any, question: str, prompt: str) -> str:
    """Return the chat that asks; the placeholder of an image is no prompt's to write."""
    token = getattr(processor, "image_token", None)
    text = question.replace("{}", prompt.replace(token, "") if token else prompt)
    return chat(processor, [{"type": "image"}, {"type": "text", "text": text}])
