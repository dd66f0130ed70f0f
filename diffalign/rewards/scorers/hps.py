"""HPSv2 and HPSv2.1 (2306.09341): a fine-tuned CLIP ViT-H/14 of open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from diffalign.data.units import COSINE
from diffalign.rewards.scorers.frame import Frame
from diffalign.rewards.scorers.network import Network, fill, frozen, read_weights

FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
RANGES = {"2.0": "0.25 to 0.29", "2.1": "0.20 to 0.34"}


def hps(
    *,
    version: Literal["2.0", "2.1"] = "2.1",
    model: str = "xswu/HPSv2",
    architecture: str = "ViT-H-14",
    revision: str | None = None,
    device: str = "cpu",
) -> Network:
    """Return HPSv2 or 2.1: the cosine of image and prompt, without temperature; wide and tall images are padded, not cropped.

    `model` is a file, or a folder or hub id with the version's file; its keys may begin with `model.`, as in ports to safetensors.
    `architecture` is one that open_clip knows. Raises CheckpointError if the file is missing or is not of the architecture.
    """
    import open_clip  # takes seconds, and is needed for this scorer alone

    weights = {key.removeprefix("model."): value.float() for key, value in read_weights(model, FILES[version], revision).items()}
    network: Any = open_clip.create_model(architecture)
    fill(network, weights, model, unused=("attn_mask",))
    frozen(network, device)
    tokenizer: Any = open_clip.get_tokenizer(architecture)

    def formula(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        texts = tokenizer(list(prompts)).to(device)
        return (network.encode_image(pixels, normalize=True) * network.encode_text(texts, normalize=True)).sum(dim=-1)

    scale = f"cosine of image and prompt, usually {RANGES[version]}; compares images of one prompt; another version's is another scale"
    frame = Frame(network.visual.image_size[0], "pad")
    return Network(f"hpsv{version}", scale, "Apache-2.0", tokenizer.context_length, revision, frame, formula, device, COSINE)
