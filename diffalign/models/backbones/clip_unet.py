"""What Stable Diffusion and Stable Diffusion XL have in common: a UNet, and CLIP text encoders, which can be trained with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffalign.core.types import Condition
from diffalign.models.backbones import unet
from diffalign.models.backbones.places import Place
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.prompted import Prompted, tokenized


class ClipUNet(Pretrained):
    """A UNet that reads prompts with CLIP alone."""

    @abstractmethod
    def read(self, encoders: Mapping[str, Any], tokens: Condition) -> Condition:
        """Return the embeddings of prompts, with a gradient, as `encode_prompt` returns them where encoders are frozen."""

    def read_layers(self) -> dict[str, int]:
        """Return how many layers of each text encoder, by its name in the pipeline, the UNet reads."""
        encoders: dict[str, Any] = {name: part for name, part in self._encoders().items() if name != "vae"}
        return {name: int(encoder.config.num_hidden_layers) for name, encoder in encoders.items()}

    def train_text_encoders(self) -> None:
        """Put the text encoders beside the UNet, into what is trained; the condition of a prompt is then its tokens."""
        encoders = {name: part for name, part in self._encoders().items() if name != "vae"}
        self.denoiser = Prompted(self.denoiser, encoders, self.read)

    def _tokens_of(self, prompts: Sequence[str]) -> Condition | None:
        """Return the tokens of prompts where text encoders are trained, None where embeddings are what the UNet is given."""
        return tokenized(self._pipe, prompts, self.device) if isinstance(self.denoiser, Prompted) else None

    def _words(self, condition: Condition) -> Any:
        """Return what the denoiser takes as prompts: embeddings (N, L, D) in its precision, or the tokens."""
        dtype: Any = self.denoiser.dtype
        return condition if isinstance(self.denoiser, Prompted) else condition["prompt_embeds"].to(dtype)

    def _pooled(self, condition: Condition) -> dict[str, Tensor]:
        """Return the argument of the pooled embeddings, which are made of tokens later."""
        dtype: Any = self.denoiser.dtype
        return {} if isinstance(self.denoiser, Prompted) else {"text_embeds": condition["pooled_prompt_embeds"].to(dtype)}

    @classmethod
    def place(cls, layer: str, config: Mapping[str, Any]) -> Place | None:
        """Return where a layer of the UNet lies in the published layout."""
        return unet.place(layer, config)
