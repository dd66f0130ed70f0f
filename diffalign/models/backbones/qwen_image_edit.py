"""Qwen-Image-Edit, and its later version (2509, Plus): Qwen-Image with an input picture among its tokens, which the text encoder sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Condition
from diffalign.models.backbones.qwen_image import QwenImage

MEGAPIXEL = 1024 * 1024


class QwenImageEdit(QwenImage):
    """A transformer that predicts the velocity of an edited picture."""

    names = ("qwen-image-edit", "")
    picture = "needed"

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Raise ConfigError: prompts are read together with a picture."""
        raise ConfigError(f"{self.name}: an edit model, which reads {prompts[0]!r} together with an input picture, and here is none")

    @torch.no_grad()
    def encode_edit(self, prompts: Sequence[str], seen: Tensor | None) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)}, with L of the tokens of a picture and of a prompt.

        Prompt and picture stand in the stock pipeline's template, whose first tokens are left out.
        """
        if seen is None:
            return self.encode_prompt(prompts)
        pipe, encoder = self._pipe, self._pipe.text_encoder
        length = self._sequence_length() + self._vision_tokens(*seen.shape[2:])
        if isinstance(next(encoder.parameters()), FakeTensor):  # of a dry run, where pictures have no numbers
            width = encoder.config.get_text_config().hidden_size
            return {"prompt_embeds": torch.zeros(len(seen), length, width), "prompt_attention_mask": torch.ones(len(seen), length)}
        pictures = [Image.fromarray(one.permute(1, 2, 0).cpu().numpy()) for one in seen]
        chats = [pipe.prompt_template_encode.format(f"{self._mark}{prompt}") for prompt in prompts]
        inputs = pipe.processor(text=chats, images=pictures, padding=True, return_tensors="pt").to(encoder.device)
        read = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
        states = encoder(**read, output_hidden_states=True).hidden_states[-1]
        mask, skipped = inputs["attention_mask"].bool(), pipe.prompt_template_encode_start_idx
        words = [states[number, own][skipped:][:length] for number, own in enumerate(mask)]
        padded = torch.stack([nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in words])
        lengths = torch.tensor([len(row) for row in words], device=mask.device)
        return {"prompt_embeds": padded, "prompt_attention_mask": torch.arange(length, device=mask.device) < lengths[:, None]}

    def reference_size(self, height: int, width: int) -> tuple[int, int]:
        """Return a size of a megapixel of this aspect ratio."""
        return _sized(self._stock, MEGAPIXEL, height, width)

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the same, of Plus a size of 384 by 384 pixels."""
        return _sized(self._stock, pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE if self._plus else MEGAPIXEL, height, width)

    def fingerprint(self) -> str:
        """Return the hash of the encoders, with the template and the size at which pictures are seen, which differ between versions."""
        return f"{super().fingerprint()}-{type(self._pipe).__name__}"

    @property
    def _plus(self) -> bool:
        return type(self._pipe).__name__ == "QwenImageEditPlusPipeline"

    @property
    def _stock(self) -> Any:
        return pipeline_qwenimage_edit_plus if self._plus else pipeline_qwenimage_edit

    @property
    def _mark(self) -> str:
        """Return what stands before the prompt in the template."""
        return "Picture 1: <|vision_start|><|image_pad|><|vision_end|>" if self._plus else ""

    def _vision_tokens(self, height: int, width: int) -> int:
        """Return how many tokens a picture has in its prompt."""
        processor: Any = self._pipe.processor.image_processor
        return processor.get_number_of_image_patches(height, width, {}) // processor.merge_size**2


def _sized(stock: Any, area: int, height: int, width: int) -> tuple[int, int]:
    """Return the stock pipeline's (height, width) of so many pixels."""
    wide, high, *_ = stock.calculate_dimensions(area, width / height)
    return high, wide
