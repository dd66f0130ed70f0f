"""`diffalign export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run

ABOUT = "write a run as files for other programs"
HELP = """files:
  pytorch_lora_weights.safetensors   diffusers: pipe.load_lora_weights(folder), with the adapter's config
  <name>_comfyui.safetensors         ComfyUI (models/loras) and kohya's scripts: their keys, and the alpha of the training
  model_index.json, unet/, ...       merged: a whole pipeline for from_pretrained, in --dtype
  README.md                          model card: method, base, data, settings, and what `diffalign eval` measured
examples:
  diffalign export --output_dir outputs/mine --destination outputs/mine-lora
  diffalign export --output_dir outputs/mine --destination outputs/mine-fp16 --formats merged --dtype fp16
  diffalign export --output_dir outputs/mine --destination outputs/mine-lora --push_to_hub --hub_model_id me/mine-lora
A result of diffusion_npo or self_npo is for the unconditional branch of guidance alone; it is not merged.
A personalised run (ppd) is an IP-Adapter that stock pipelines load (ip_adapter.safetensors), its user encoder, and --users as
examples; only diffusers takes it, and it cannot be merged: what it adds depends on the user.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Write a finished run as files for other programs, with a model card: a LoRA for diffusers and for ComfyUI, or merged weights."""

    output_dir: str
    """Folder of a finished `diffalign train` run."""
    destination: str
    """Folder to write; it appears whole or not at all."""
    formats: list[str] = field(default_factory=list)
    """Any of diffusers, comfyui, merged; if not given, diffusers and comfyui for an adapter, merged for a full fine-tune."""
    name: str | None = None
    """Name of the export and its files; if not given, made of the base, the method and what was trained."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of merged weights; adapters keep the one they were trained in."""
    users: list[str] = field(default_factory=list)
    """For a personalised run: files of `diffalign user embed` to put beside it, as examples."""
    overwrite: bool = False
    """Replace an earlier export; a folder that holds anything else is left alone."""
    push_to_hub: bool = False
    """Upload the folder too; the token is read from the environment variable HF_TOKEN and from nowhere else."""
    hub_model_id: str | None = None
    """Repository to upload to, as owner/name; if not given, the export's name under your own account."""


def run(config: CONFIG) -> int:
    """Write the files and say where they lie."""
    if config.hub_model_id is not None and not config.push_to_hub:
        raise ConfigError("`hub_model_id` says where to upload to; add --push_to_hub, or leave it out")
    Run.open(config.output_dir)
    from diffalign.infer.export.export import export_run

    folder = export_run(
        config.output_dir,
        config.destination,
        formats=config.formats,
        name=config.name,
        dtype=config.dtype,
        users=config.users,
        overwrite=config.overwrite,
        push_to_hub=config.push_to_hub,
        hub_model_id=config.hub_model_id,
    )
    for path in sorted(folder.iterdir()):
        print(path)
    return 0
