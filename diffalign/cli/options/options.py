"""What the subcommands besides `train` can be told: the flags of the command line, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartConfig:
    """See the whole loop on a small embedded Stable Diffusion: about five minutes on two cores, no GPU, no download."""

    output_dir: str = "outputs/quickstart"
    """Folder for pairs, weights and report."""
    model: str = "assets/tiny-sd"
    """The embedded model: assets/tiny-sd (a UNet), or assets/tiny-sd3 (a flow-matching transformer)."""
    taste: str = "high"
    """What the simulated voter likes: high (near the top), centred, warm, large, bright_background, contrast or bright_shape."""
    temperature: float = 0.0
    """How often the voter errs (Bradley-Terry); 0 never."""
    method: str = "diffusion_dpo"
    """Preference method."""
    train_prompts: int = 336
    """Prompts to make pairs for."""
    images_per_prompt: int = 2
    """Pictures of each prompt; neighbours are voted on."""
    eval_prompts: int = 200
    """Prompts not trained on, to judge with."""
    beta: float | None = None
    """Beta of the objective; 500 for Diffusion-DPO, the method's own for others."""
    learning_rate: float = 1e-3
    """Learning rate."""
    rank: int = 8
    """Rank of the LoRA adapter."""
    max_train_steps: int = 300
    """Optimiser steps."""
    train_batch_size: int = 32
    """Pairs a step."""
    num_inference_steps: int = 25
    """Solver steps of every picture."""
    guidance_scale: float = 4.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed of prompts, pictures, votes and training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuickstartConfig:
    """See the loop for the model that writes prompts: it rewrites short ones, an image model draws them, a taste chooses, Sem-DPO
    trains. About five minutes on two cores, no GPU, no download."""

    output_dir: str = "outputs/quickstart_text"
    """Folder for pairs, weights and report."""
    model: str = "assets/tiny-lm"
    """The language model, a chat model that rewrites short prompts."""
    image_model: str = "assets/tiny-sd"
    """The image model that draws; it is not trained."""
    taste: str = "high"
    """What the simulated voter likes: high (near the top), centred, warm, large, bright_background, contrast or bright_shape."""
    distance: str = "attributes"
    """Distance of meaning between a short prompt and its rewrite: attributes (the share lost, by the embedded world's grammar), or the
    folder or hub id of a sentence encoder (one minus the cosine)."""
    alpha: float = 5.0
    """Sem-DPO's weight of a pair is exp(-alpha * distance of the preferred rewrite); 0 is plain DPO."""
    train_prompts: int = 256
    """Short prompts to make pairs for."""
    rewrites_per_prompt: int = 4
    """Rewrites sampled for each; best and worst make the pair."""
    min_gap: float = 0.1
    """Least difference in taste, in [0, 1], of a pair that is trained on."""
    eval_prompts: int = 200
    """Short prompts not trained on, to judge with."""
    beta: float = 1.0
    """Beta of DPO; multiplies nats."""
    learning_rate: float = 2e-4
    """Learning rate."""
    rank: int = 8
    """Rank of the LoRA adapter."""
    max_train_steps: int = 150
    """Optimiser steps, of each of the two runs: with the weight and without."""
    train_batch_size: int = 32
    """Pairs a step."""
    num_inference_steps: int = 8
    """Solver steps of every picture."""
    guidance_scale: float = 4.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed of prompts, rewrites, pictures and training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Read a dataset into a preference table: rows kept, and rows dropped with reasons."""

    dataset_name: str
    """Dataset file, folder, or hub id."""
    output_dir: str
    """Folder of the new table."""
    reader: str | None = None
    """Dataset layout; found by its columns if not given."""
    dataset_split_name: str | None = None
    """Split of the dataset, for example train."""
    max_train_samples: int | None = None
    """Read only so many rows."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and list them, instead of stopping at the first."""
    overwrite: bool = False
    """Replace a table that lies in output_dir."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig:
    """Show what a table or dataset holds: counts, label balance, ties, users, resolutions, and a sheet of rows as PNG."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    contact_sheet: str | None = None
    """Where to write the sheet of rows; beside the table as contact_sheet.png if not given."""
    rows: int = 8
    """Rows on the sheet."""
    seed: int = 0
    """Seed that chooses the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Look for what would spoil training: broken or tiny images, contradicting labels, duplicates, no strict pair."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    resolution: int | None = None
    """Warn of images smaller than this many pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChesConfig:
    """Score pairs of texts by how alike a language model sees their answers (CHES, 2410.08847): of those with large scores training would
    make the preferred answer less likely. Train on the rest with the transform {lowest: {score: ln_ches, share: 0.5}}."""

    dataset_name: str
    """Preference table with pairs or rankings of texts."""
    output_dir: str
    """Folder of the new table, whose preferred candidates have the scores ches and ln_ches."""
    pretrained_model_name_or_path: str = "assets/tiny-lm"
    """The model to be trained: a folder or hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    max_length: int = 1024
    """Most tokens of prompt and completion together; what is longer is cut or left out as in training."""
    chat_template: str | None = None
    """A Jinja file for conversations, where the tokenizer brings no template of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """Turn the choices of a user into a file of a few kB (encoder vlm: some 100 kB), with which a personalised run draws for them."""

    output_dir: str
    """Folder of a finished `diffalign train` run of ppd."""
    destination: str
    """File to write, name.safetensors; for several users a folder, which gets a file for each."""
    dataset_name: str | None = None
    """Pairs that the user has chosen from: preference table, dataset file, folder, or hub id. Columns: prompt, chosen and rejected
    (images), or image_0, image_1 and label_0 (1 where the first is preferred); user_id, where there are several users."""
    dataset_split_name: str | None = None
    """Split of the dataset, for example train."""
    reader: str | None = None
    """Layout of the dataset; found by its columns if not given."""
    user_id: str | None = None
    """Whose pairs of the dataset; all its users if not given."""
    max_pairs: int | None = None
    """Read only the first so many pairs of a user."""
    profile: str | None = None
    """Instead of pairs, for a run with user_encoder profile: a text about the user."""
    overwrite: bool = False
    """Replace files that are there already."""
    device: str | None = None
    """Where to run, for example cuda; a GPU if there is one."""
