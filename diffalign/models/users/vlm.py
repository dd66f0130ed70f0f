"""A vision-language model looks at a user's choices and describes the user; the state it ends in is the user's embedding.

The first stage of PPD (2501.06655): pairs in one chat with many pictures, greedy decoding, then the hidden states of the last step at
all layers. Differences from the released code: the request is in other words, and any model of transformers can be asked.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForImageTextToText, AutoProcessor

from diffalign.core import tensor_files as files
from diffalign.core.errors import CheckpointError, TableError
from diffalign.data.cache import fingerprint as hashed
from diffalign.models.users.choices import Choice, contents
from diffalign.models.weights import UNREADABLE, weights_hash, weights_mark, whole

logger = logging.getLogger(__name__)

OPENING = (
    "Someone was shown pictures two at a time and said which one they would rather have. "
    "Both pictures of a pair were made for the same prompt. What they decided:"
)
REQUEST = (
    "First describe every picture in one or two sentences. Then go through the pairs and explain what sets the preferred picture apart "
    "from the dispreferred one: its style, its visual quality, its aesthetics. Close with a section under the heading User Profile: "
    "one paragraph on what this person looks for in a picture and what they avoid."
)
Content = list[dict[str, Any]]  # of a chat's message: texts and pictures, in turn


class VlmStates:
    """A vision-language model's states at the end of its description of a user; it is never trained.

    `name` is a folder or hub id of any image-text-to-text model of transformers whose processor has a chat template; code of its own
    is never run and pickled weights are never read. `dtype` is the weights' as they are stored where None. Raises CheckpointError for
    a model that is missing, incomplete or takes no pictures, before its weights are read.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        max_new_tokens: int = 1024,
    ) -> None:
        self.name, self._limit = name, max_new_tokens
        try:
            text, self._processor = checked(name, revision)
            self._model = whole(AutoModelForImageTextToText, name, revision, dtype=dtype or "auto")
        except UNREADABLE as error:
            raise CheckpointError(f"{name}: no vision-language model can be loaded from here: {error}") from error
        self._model.to(device).requires_grad_(False).eval()
        self.rows, self.width = _sizes(text)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return a hash of the weights, the processor and what is asked: it changes when the states would, and caches are keyed by it."""
        return self._hash(weights_hash(self._model))

    @functools.cached_property
    def source(self) -> str:
        """Return a hash of the first numbers of the weights, and all else: by it a run knows the model that it was trained with."""
        return self._hash(weights_mark(self._model))

    def _hash(self, weights: str) -> str:
        processor = self._processor
        vocabulary = repr(sorted(processor.tokenizer.get_vocab().items()))
        facts = {
            "weights": weights,
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "pictures": processor.image_processor.to_json_string(),
            "chat": [processor.chat_template, OPENING, REQUEST],
            "decoding": [self._limit, self._model.generation_config.repetition_penalty],
        }
        return hashed(facts)

    @torch.no_grad()
    def __call__(self, choices: Sequence[Choice]) -> tuple[Tensor, str]:
        """Return states (R, W), float32, on the CPU, and the text that the model wrote about the user of `choices`, read in their order.

        Row 0 is the embedding's, row i the i-th decoder layer's, at the position that the last token was predicted from. Decoding is
        greedy. A text that was cut off at `max_new_tokens` ends in a state of another meaning, which is logged as a warning.
        """
        inputs = self._inputs(choices)
        plain = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        kept = {"return_dict_in_generate": True, "output_hidden_states": True}
        generated = self._model.generate(**inputs, max_new_tokens=self._limit, **plain, **kept)
        written = generated.sequences[0, inputs["input_ids"].shape[1] :]
        if int(written[-1]) not in self._ends():
            logger.warning(
                "%s: the description of this user was cut off after %d tokens, so that its last state means something else than the end; "
                "raise max_new_tokens",
                self.name,
                len(written),
            )
        states = torch.stack([layer[0, -1] for layer in generated.hidden_states[-1]])
        return states.float().cpu(), self._processor.tokenizer.decode(written, skip_special_tokens=True).strip()

    def _inputs(self, choices: Sequence[Choice]) -> Any:
        text = _rendered(self.name, self._processor, choices)
        images = [image for choice in choices for image in (choice.preferred, choice.dispreferred)]
        return encoded(self._processor, [text], [images]).to(self._model.device, self._model.dtype)

    def _ends(self) -> list[int]:
        ends = self._model.generation_config.eos_token_id
        return list(ends) if isinstance(ends, (list, tuple)) else [ends]


def encoded(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Any:
    """Return what a model is given for chats, rendered as `texts`, with the images of each; shorter chats are padded on their left."""
    opens = processor.tokenizer.bos_token
    twice = opens is not None and texts[0].startswith(opens)  # most templates write it; the tokenizer would once more
    settings: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
    return processor(text=list(texts), images=[list(own) for own in images], return_tensors="pt", add_special_tokens=not twice, **settings)


def checked(name: str, revision: str | None) -> tuple[Any, Any]:
    """Return the config of the language part and the processor of a model that takes pictures in a chat."""
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise CheckpointError(f"{name}: a model of type `{config.model_type}`, which writes no text about pictures")
    processor: Any = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
    if getattr(processor, "image_processor", None) is None:  # where files are missing, it is a mere tokenizer
        raise CheckpointError(f"{name}: its processor ({type(processor).__name__}) takes no pictures; expected one with an image processor")
    if processor.chat_template is None:
        raise CheckpointError(f"{name}: its processor has no chat template; expected a model that was tuned for chats")
    return config.get_text_config(), processor


def vlm_sizes(name: str, revision: str | None = None) -> tuple[int, int]:
    """Return (R, W) of a model's states, from its config and processor alone. Raises CheckpointError as `VlmStates` does."""
    try:
        return _sizes(checked(name, revision)[0])
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no vision-language model can be loaded from here: {error}") from error


def _sizes(text: Any) -> tuple[int, int]:
    return int(text.num_hidden_layers) + 1, int(text.hidden_size)


def _content(choices: Sequence[Choice], token: str | None) -> Content:
    """Return the message: for each pair its prompt, then each picture behind its label; `token` is no user's to write."""
    content: Content = [{"type": "text", "text": OPENING}]
    for number, choice in enumerate(choices, 1):
        prompt = choice.prompt.replace(token, "") if token else choice.prompt
        labels = f"\n\nPair {number}. Prompt: {prompt}\nPicture {2 * number - 1}, preferred:\n", f"\nPicture {2 * number}, dispreferred:\n"
        for label in labels:
            content += [{"type": "text", "text": label}, {"type": "image"}]
    return [*content, {"type": "text", "text": f"\n\n{REQUEST}"}]


def _rendered(name: str, processor: Any, choices: Sequence[Choice]) -> str:
    """Return the chat as text, every picture's placeholder behind its label.

    Templates such as LLaVA-OneVision's put all pictures first, where labels lose them; there the placeholders are written as text.
    """
    token = getattr(processor, "image_token", None)  # a processor without one gets what its template makes
    content = _content(choices, token)
    text = chat(processor, content)
    if token is None or _in_turn(text, token, len(choices)):
        return text
    text = chat(processor, [{"type": "text", "text": "".join(part.get("text", token) for part in content)}])
    if not _in_turn(text, token, len(choices)):
        raise CheckpointError(f"{name}: its chat template loses pictures or labels; expected one `{token}` behind each label in {text!r}")
    return text


def chat(processor: Any, content: Content) -> str:
    """Return a chat of one message, up to where the model answers, as text."""
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)


def _in_turn(text: str, token: str, pairs: int) -> bool:
    """Return whether `text` has one placeholder for each picture, behind its label."""
    *before, _ = text.split(token)
    return len(before) == 2 * pairs and all(f"Picture {number}, " in part for number, part in enumerate(before, 1))


def cached(states: VlmStates, folder: Path, key: str, choices: Sequence[Choice]) -> Tensor:
    """Return states (R, W), float32, of the user `key` from `folder`; they are computed if they are not there.

    A file is found by the hash of the model, the user and the choices (prompts, pixels and order); what the model has written about the
    user is not kept. Raises TableError for a damaged file.
    """
    facts = {"states": states.fingerprint, "user": key, "choices": contents(choices)}
    file = folder / f"{hashed(facts)[:32]}.safetensors"
    if not file.exists():
        files.write(file, {"states": states(choices)[0]}, facts)
    try:
        return files.read(file)[0]["states"]
    except (CheckpointError, KeyError) as error:
        raise TableError(f"{file}: damaged, or no user's states ({error!r}); remove it and start again") from error
