"""What all families share: a stock pipeline whose encoders are frozen, its VAE, and the hash that caches are keyed by."""

from __future__ import annotations

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import ProcessorMixin

from diffalign.core.errors import CheckpointError, ConfigError, LatentError
from diffalign.core.types import Condition
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.distilled import turbo_times
from diffalign.models.backbones.latents import Latents, Scaled
from diffalign.models.backbones.places import Place, Published
from diffalign.models.control import kind_of, new_controlnet, pipeline_of, read_controlnet
from diffalign.models.controlled import Controlled
from diffalign.models.diffusion.path import FlowPath, Path, VPPath
from diffalign.models.diffusion.shift import DynamicShift, EmpiricalShift, RootShift
from diffalign.models.prompted import text_encoders
from diffalign.models.sharded import is_sharded
from diffalign.models.users import branch
from diffalign.models.weights import add_tensor

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PIXEL = 2400  # bytes that a VAE of 128 channels works in for one, in float32
JOINT = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # with the prompt's side, as the scripts of diffusers do


class Pretrained(ABC):
    """A loaded pipeline. A family is a subclass in a file of its own, which says everything that is particular to it.

    The class methods are asked about a stock pipeline, or about configs, where no model is loaded.
    """

    component: str = "unet"
    lora_targets: tuple[str, ...] = ATTENTION
    # Arguments of the stock pipeline: a safety checker, a watermark or an upscaler would change, or refuse, what is compared.
    pipeline_options: ClassVar[Mapping[str, Any]] = {}
    # Arguments of every call of the stock pipeline, by which it takes prompt and size as they are.
    call_options: ClassVar[Mapping[str, Any]] = {}
    names: ClassVar[tuple[str, str]]  # of its architecture in ModelSpec, and in kohya's scripts: empty where they have none
    published: ClassVar[Published] = Published()
    picture: ClassVar[Literal["none", "optional", "needed"]] = "none"  # whether it takes an input picture
    side: ClassVar[int | None] = None  # pixels of the pipeline's pictures, where no config has a size
    reads_padding: ClassVar[bool] = True  # whether its denoiser reads states of a prompt where the mask is zero, as all do without a mask
    _latents: Latents = Scaled()
    _shift: ClassVar[type[DynamicShift | RootShift | EmpiricalShift]] = DynamicShift  # of a flow model's times
    # Names in LoRA files: kohya's by the published layout, kohya's by diffusers' paths, or ComfyUI's own.
    lora_naming: ClassVar[Literal["kohya", "kohya_diffusers", "comfyui"]] = "kohya"

    def __init__(self, pipe: Any, name: str, precision: torch.dtype = torch.float32, settings: BackboneSettings | None = None) -> None:
        self.name, self.precision, self.settings = name, precision, settings or BackboneSettings()
        self._pipe = pipe
        self.denoiser: nn.Module = getattr(pipe, self.component)
        self._factor = self.factor(pipe)
        self.resolution = self.settings.resolution or self.sample_size(pipe) * self._factor
        self.path: Path = self._path()
        if isinstance(self._latents, Scaled) and pipe.vae.config.get("latents_mean") is not None:
            raise CheckpointError(f"{name}: its VAE normalises latents channel by channel, which models of this family do not")
        self._channels = self._latents.channels(pipe.vae)
        for part in self._encoders().values():
            part.requires_grad_(False).eval()
        self.denoiser.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Return where the denoiser lies."""
        return next(self.denoiser.parameters()).device

    @property
    def network(self) -> nn.Module:
        """Return what gets trained: the denoiser, with what is trained beside it."""
        return self.denoiser

    @property
    def adapted(self) -> dict[str, nn.Module]:
        """Return the networks that have adapters of a run, by their name in the pipeline: the denoiser, and text encoders with it."""
        return {self.component: getattr(self._pipe, self.component), **text_encoders(self.denoiser)}

    def control(self, name: str | None = None) -> None:
        """Put a trainable ControlNet beside the frozen denoiser, and into the stock pipeline: that of a folder or hub id, or a new one.

        A new one copies the first blocks as the denoiser holds them, which then goes to the precision of the run. Raises CheckpointError
        for a family without ControlNets, and a ControlNet of another model.
        """
        kind, denoiser = kind_of(self._pipe), self.denoiser
        controlnet = new_controlnet(kind, denoiser, self._factor) if name is None else read_controlnet(kind, name, denoiser)
        nn.Module.to(denoiser, self.precision)  # the class's own method warns of it
        self._pipe = pipeline_of(self._pipe, controlnet, self.pipeline_options)
        self.denoiser = kind.controlled(denoiser, controlnet.requires_grad_(True))

    def read_layers(self) -> dict[str, int]:
        """Return how many layers of each text encoder the denoiser reads. Raises CheckpointError where they are not CLIP's alone."""
        raise CheckpointError(f"{self.name}: text encoders are trained of models that read prompts with CLIP alone, which this is not")

    def train_text_encoders(self) -> None:
        """Put the text encoders beside the denoiser, into what is trained. Raises CheckpointError as `read_layers`."""
        self.read_layers()

    def beta_in_words(self, beta: float) -> str:
        """Return `beta` and what it is on the sum over the latent, as other scripts count it."""
        elements = math.prod(self.latent_shape(self.resolution, self.resolution))
        small = " (far below the usual 500 to 5000: hardly anything is learned)" if beta < 10.0 else ""
        return f"beta {beta:g} on half the mean over {elements} latent elements = {beta / (2 * elements):.4g} on their sum{small}"

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the latent of an image in pixels."""
        return self._channels, height // self._factor, width // self._factor

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return what the denoiser is told about each prompt, first axis N."""

    def prompt_for_training(self, prompts: Sequence[str]) -> Condition:
        """Return `encode_prompt` with zeros where the denoiser reads nothing: its output is the same, and zeros take no room in a cache."""
        condition = dict(self.encode_prompt(prompts))
        if not self.reads_padding:
            words, mask = condition["prompt_embeds"], condition["prompt_attention_mask"]
            condition["prompt_embeds"] = words * mask.to(words).view(*mask.shape, *[1] * (words.ndim - mask.ndim))
        return condition

    @abstractmethod
    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the output of `model` like x (N, C, H, W), computed under autocast to `precision`, whichever network it is."""

    @torch.no_grad()
    def encode_image(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return scaled latents, float32. Raises LatentError where they are not finite (a half-precision VAE overflows)."""
        latents = self._in_parts(pixels, noise)
        if not latents.isfinite().all():
            bad = (~latents.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
            raise LatentError(
                f"{self.name}: the VAE gives latents that are not finite for images {bad} of this batch; run it in float32", bad
            )
        return latents

    def _in_parts(self, pixels: Tensor, noise: Tensor) -> Tensor:
        few = self.encoded_at_once(*pixels.shape[2:])
        return torch.cat([self.encode_at_once(some, own) for some, own in zip(pixels.split(few), noise.split(few), strict=True)])

    def encoded_at_once(self, height: int, width: int) -> int:
        """Return how many images of a size in pixels the VAE reads at once: few on a CPU, for its caches, and on a GPU by its free memory.

        One image of 512 by 512 pixels takes 0.6 GiB in float32.
        """
        return max(1, self._pixels_at_once() // (height * width))

    def _pixels_at_once(self) -> int:
        device = self._pipe.vae.device
        if device.type == "cpu":
            return 2**16
        if not torch.cuda.is_available():  # in a dry run, or on other devices
            return 2**18
        free, _ = torch.cuda.mem_get_info(device if device.index is not None else None)
        return min(2**20, free // 4 // PIXEL)

    def encode_at_once(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return the scaled latents (N, C, H, W) of images (N, 3, h, w) that the VAE reads in one call."""
        vae = self._pipe.vae
        return self._latents.encode(vae, pixels.to(vae.device, vae.dtype), noise.to(vae.device))

    def reference_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which the stock pipeline of an edit model reads the input picture of a picture of this size."""
        return height, width

    def seen_size(self, height: int, width: int) -> tuple[int, int] | None:  # noqa: ARG002  # of edit models
        """Return the size at which the text encoder sees that picture, None where it reads the prompt alone."""
        return None

    def encode_reference(self, pixels: Tensor) -> Tensor:
        """Return latents of input pictures (N, 3, h, w), uint8: the mode of the posterior, as stock pipelines of edit models take it."""
        count, _, height, width = pixels.shape
        return self.encode_image(2.0 * (pixels.float() / 255.0) - 1.0, torch.zeros(count, *self.latent_shape(height, width)))

    def encode_edit(self, prompts: Sequence[str], seen: Tensor | None) -> Condition:  # noqa: ARG002  # of encoders that see pictures
        """Return the condition of prompts beside input pictures (N, 3, h, w), uint8."""
        return self.encode_prompt(prompts)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Return the pictures of scaled latents (N, C, H, W), as the stock pipeline decodes them."""
        vae, images = self._pipe.vae, []
        few = max(1, 2**20 // (latents[0, 0].numel() * self._factor**2))
        for some in latents.split(few):
            decoded = self._latents.decode(vae, some.to(vae.device, vae.dtype))
            images += self._pipe.image_processor.postprocess(decoded, output_type="pil")
        return images

    def cut_prompts(self, prompts: Sequence[str]) -> tuple[int, int]:
        """Return how many of `prompts` do not fit the text encoder that reads the most, and how many tokens that is, special ones too."""
        tokenizers = self._tokenizers().values()
        large = [part for part in tokenizers if "CLIP" not in type(part).__name__]
        limits = [(self._sequence_length(), part) for part in large] or [(int(part.model_max_length), part) for part in tokenizers]
        if not limits:
            return 0, 0
        limit, tokenizer = max(limits, key=lambda pair: pair[0])
        long = [prompt for prompt in prompts if len(prompt.encode()) + 2 > limit]  # a token is a byte at least
        return sum(len(ids) > limit for ids in tokenizer(long, verbose=False).input_ids) if long else 0, limit

    def pipeline(self, *, whole: bool = True) -> Any:
        """Return the stock pipeline around the denoiser as it is now; `whole` to draw with: all of it lies where the denoiser does."""
        if whole:
            for part in self._encoders().values():
                part.to(self.device)
            self._pipe.vae.float()  # what the denoiser hands over in training is float32
        return self._pipe

    def park(self) -> None:
        """Move the encoders to the CPU: with everything cached, a training step uses what is trained alone.

        The VAE stays where a ControlNet reads latents of its conditioning images, which are cached as pixels.
        """
        kept = {*text_encoders(self.denoiser), *(["vae"] if self.encodes_conditioning else [])}
        for name, part in self._encoders().items():
            if name not in kept:
                part.to("cpu")

    def fingerprint(self) -> str:
        """Return a hash over the encoders' own weights, the tokenizers and the prompt length: caches are keyed by it."""
        facts = (*self._latents.facts(self._pipe.vae), self.settings.max_sequence_length)
        digest = hashlib.sha256(repr(facts).encode())
        for name, tokenizer in sorted(self._tokenizers().items()):
            digest.update(repr((name, tokenizer.model_max_length, sorted(tokenizer.get_vocab().items()))).encode())
        for part in self._encoders().values():
            for key, value in part.state_dict().items():
                if "lora_" not in key:
                    add_tensor(digest, key.replace(".base_layer", ""), value)
        return digest.hexdigest()

    def vae_fingerprint(self) -> str:
        """Return a hash of the VAE's encoder by the signs of its weights (the first of each), which rounding to another precision keeps.

        By it a personalised run knows the VAE that its encoder was trained with.
        """
        vae = self._pipe.vae
        digest = hashlib.sha256(repr(self._latents.facts(vae)).encode())
        for key, value in vae.state_dict().items():
            if key.startswith(("encoder.", "quant_conv.")):
                digest.update(f"{key}{tuple(value.shape)}".encode())
                digest.update(value.flatten()[:256].cpu().signbit().numpy().tobytes())
        return digest.hexdigest()

    def _encoders(self) -> dict[str, nn.Module]:
        encoders = {name: part for name, part in self._pipe.components.items() if name == "vae" or name.startswith("text_encoder")}
        return {name: part for name, part in encoders.items() if part is not None}

    def _tokenizers(self) -> dict[str, Any]:
        """Return the tokenizers that are there, of FLUX.2 dev that of its processor of words and pictures."""
        parts = {name: part for name, part in self._pipe.components.items() if name.startswith("tokenizer") and part is not None}
        return {name: part.tokenizer if isinstance(part, ProcessorMixin) else part for name, part in parts.items()}

    def _tokens(self, condition: Condition, count: int) -> Tensor | None:
        """Return the users' tokens of `count` rows (N, U, D), None without a user branch; not in half precision, as in use."""
        denoiser: Any = self.denoiser
        if not branch.attached(denoiser):
            return None
        with torch.autocast(self.device.type, enabled=False):
            return denoiser.user_encoder(condition, count)

    def _told(self, condition: Condition, count: int) -> dict[str, Any]:
        """Return what the denoiser's forward is told of the users, besides its own arguments."""
        tokens = self._tokens(condition, count)
        return {} if tokens is None else branch.forward_arguments(self.denoiser, tokens)

    @classmethod
    def factor(cls, pipe: Any) -> int:
        """Return how many pixels high a latent row is."""
        return int(pipe.vae_scale_factor) * cls._latents.patch

    @property
    def encodes_conditioning(self) -> bool:
        """Return whether there is a ControlNet that reads latents of conditioning images."""
        return isinstance(self.denoiser, Controlled) and self.denoiser.reads_latents

    def _conditioning(self, condition: Condition) -> dict[str, Tensor]:
        """Return the argument by which a denoiser with a ControlNet gets the conditioning images."""
        if not isinstance(self.denoiser, Controlled):
            return {}
        return {"conditioning_image": self._control(condition["conditioning_image"], self.denoiser.controlnet)}

    def _control(self, pixels: Tensor, controlnet: Any) -> Tensor:  # noqa: ARG002  # of families whose ControlNets differ
        """Return what the ControlNet reads of conditioning images (N, 3, h, w) in [0, 1]."""
        return pixels

    @torch.no_grad()
    def _control_latents(self, pixels: Tensor) -> Tensor:
        """Return the latents of conditioning images (N, 3, h, w) in [0, 1]: means, where the stock pipelines draw from the posterior."""
        return self._in_parts(2.0 * pixels - 1.0, pixels.new_zeros(len(pixels), *self.latent_shape(*pixels.shape[-2:])))

    def _sequence(self, x: Tensor, condition: Condition) -> list[Tensor]:
        """Return the latents whose tokens are one sequence: those to denoise, and those of an input picture.

        Raises ConfigError where an edit model is without its picture.
        """
        if (reference := condition.get("reference")) is not None:
            return [x, reference.to(x)]
        if self.picture == "needed":
            raise ConfigError(f"{self.name}: an edit model, which draws from an input picture, and here is a prompt alone")
        return [x]

    @classmethod
    def sample_size(cls, pipe: Any) -> int:
        """Return the latent side that the denoiser of a stock pipeline was made for."""
        if cls.side is not None:
            return cls.side // cls.factor(pipe)
        return int(getattr(pipe, cls.component).config.sample_size)

    @classmethod
    def guidance(cls, guidance_scale: float, true_cfg: bool) -> dict[str, Any]:  # noqa: ARG003  # of guidance-distilled families
        """Return the arguments by which the stock pipeline draws with guidance; `true_cfg` is real guidance of a distilled model."""
        return {"guidance_scale": guidance_scale}

    @classmethod
    def sized(cls, pipe: Any, resolution: int) -> dict[str, Any]:  # noqa: ARG003  # of families whose pipeline has a size of its own
        """Return the arguments by which the stock pipeline draws squares of so many pixels."""
        return {"height": resolution, "width": resolution}

    @classmethod
    def unpacked(cls, pipe: Any, latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG003  # of families that pack
        """Return the latents (N, C, H, W) that a stock pipeline hands to its callback, of pictures of so many pixels."""
        return latents

    @classmethod
    def undrawable(cls, pipe: Any) -> str | None:  # noqa: ARG003  # of families with parts that may be absent
        """Return why a stock pipeline cannot draw, None where it can."""
        return None

    @classmethod
    def unguided(cls, config: Mapping[str, Any]) -> str | None:  # noqa: ARG003  # of families that are distilled in part
        """Return why a model cannot be drawn with guidance at all, None where it can; `config` is its denoiser's."""
        return None

    @classmethod
    def place(cls, layer: str, config: Mapping[str, Any]) -> Place | None:  # noqa: ARG003  # of families whose layers depend on it
        """Return where a layer of the denoiser lies in the published layout, None if no place is known for it."""
        return cls.published.place(layer)

    @classmethod
    def architecture(cls, config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG003  # of families with versions
        """Return how ModelSpec and kohya's scripts name a model, by the configs of its denoiser and scheduler."""
        return cls.names

    def _path(self) -> Path:
        return VPPath.from_config(self._pipe.scheduler.config, turbo_times(self.name, self._pipe.scheduler))

    def _flow_path(self, patch: int = 2) -> FlowPath:
        """Return the path of a flow model whose tokens are `patch` latent rows high."""
        side = self.resolution // self._factor
        return FlowPath.from_config(self._pipe.scheduler.config, side, side, patch, self._shift.from_config, **self.settings.flow)

    def _autocast(self) -> torch.autocast:
        """Return the block that the denoiser runs in, whichever network it is.

        Half-precision copies of weights are kept until its end, but not of a network that is spread over processes, which would be whole
        in each of them again.
        """
        kept = not is_sharded(self.denoiser)
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32, cache_enabled=kept)

    @staticmethod
    def _lengths(mask: Tensor) -> list[int]:
        """Return how many tokens each prompt has: all of them in a dry run, where the mask has no numbers."""
        return [mask.shape[1]] * len(mask) if isinstance(mask, FakeTensor) else (mask > 0).sum(dim=1).tolist()

    def _without_padding(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return prompts (N, L, D) cut to the longest of them, and their mask, None where all are as long."""
        lengths = self._lengths(mask)
        longest = max(lengths)
        return words[:, :longest], None if min(lengths) == longest else mask[:, :longest] > 0

    @staticmethod
    def _rehearsed(encoder: nn.Module, *shape: int) -> Tensor | None:
        """Return states of a shape, without numbers, if the encoder has none: in a dry run, of those that look at numbers of tokens."""
        like = next(encoder.parameters())
        return like.new_zeros(shape) if isinstance(like, FakeTensor) else None

    def _sequence_length(self) -> int:
        """Return how many tokens of a large text encoder a prompt has: as chosen, else the stock pipeline's default."""
        default = inspect.signature(type(self._pipe).__call__).parameters["max_sequence_length"].default
        return int(self.settings.max_sequence_length or default)
