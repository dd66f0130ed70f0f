"""What `diffalign pairs` can be told: its flags, as a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffalign.core.specs import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """Draw several images to each prompt with a model or a finished run, score and rank them, and write them as a preference table."""

    output_dir: str
    """Folder of the new table. What is drawn and scored lies in NAME.parts beside it until the table is whole: the same command goes on
    after a kill."""
    pretrained_model_name_or_path: str = "assets/tiny-sd"
    """What draws: a folder in diffusers layout, hub id, .safetensors file of a whole model, or the output_dir of a finished run."""
    config_folder: str | None = None
    """Of a model in one file that is none of SD 1.x, 2.x, XL, 3 or 3.5: the folder of its configs and tokenizers, in diffusers layout.
    It is needed the first time."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    variant: str | None = None
    """Weight-file variant, for example fp16."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder, one that is sound in half precision."""
    denoiser: str | None = None
    """File or folder of a denoiser alone, in place of the model's own."""
    base_lora: list[str] = field(default_factory=list)
    """LoRA files that are fused into the model, each as FILE or FILE:strength."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of the model; the one of the training for a run, else no."""
    prompts: list[str] = field(default_factory=list)
    """Prompts; files of them (.txt with one a line, or .tsv, .csv, .json, .jsonl, .parquet with a column prompt or caption); or sets by
    name: partiprompts, geneval, t2i-compbench, hpsv2, pickapic. Each prompt counts once."""
    dataset_name: str | None = None
    """Instead of prompts: a table, or a dataset with a column prompt or caption, whose prompts are taken."""
    dataset_split_name: str | None = None
    """Split of that dataset, for example train."""
    caption_column: str | None = None
    """Column of a table of prompts that holds them, if it is neither prompt nor caption."""
    max_prompts: int | None = None
    """Take only so many of the prompts, drawn by `seed`."""
    images_per_prompt: int = 4
    """Images of each prompt; 2 to 16."""
    other_model: str | None = None
    """A second model or finished run, which draws as many images of each prompt from the same seeds; all stand side by side, each with its
    model's name. Scorers may be left out then: the transform {by_model: {order: [BETTER, WORSE]}} labels by the models alone."""
    rewriter: str | None = None
    """Language model (folder, hub id or finished run) that writes images_per_prompt rewrites of each prompt, of which one picture each is
    drawn, all from the same noise. The table is then of these texts, ranked by their pictures: what that model is trained on."""
    max_new_tokens: int = 64
    """Of a rewriter: the most tokens of a rewrite."""
    sentence_model: str | None = None
    """Of a rewriter: sentence encoder of transformers (sentence-transformers/all-MiniLM-L6-v2), whose distance of each rewrite from its
    prompt is the table's score `distance`, which the transform semantic_weight reads."""
    scorers: list[Spec] = field(default_factory=list)
    """Scorers by name, constants as {taste: {name: high}}. Their scores all go into the table."""
    rank_by: str | None = None
    """Name of the score that ranks the images of a prompt; if not given, the only one, or of several the mean chance of winning: the
    share of the other images that an image beats, as RankDPO takes it from several reward models."""
    min_margin: float = 0.0
    """Leave out prompts whose best image is ahead of the worst by less than this, in what ranks them."""
    num_inference_steps: int = 25
    """Solver steps of every image."""
    guidance_scale: float = 5.0
    """Guidance of every image: the one that the model will be used with."""
    resolution: int | None = None
    """Side of the images in pixels; that of the training for a run, else the model's own."""
    max_sequence_length: int | None = None
    """Tokens of the T5 prompt (SD3, Flux, PixArt); that of the training for a run, else the pipeline's default."""
    seed: int = 0
    """Seed of the images, and of the choice of prompts. Every image has its own, made of this one, its prompt and its number; the table
    names them."""
    overwrite: bool = False
    """Replace a table that lies in output_dir, and parts that were drawn with other settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawVotesConfig:
    """Draw pictures into a vote store, as pairs to vote on: several of each prompt, from a model or from several, blind."""

    dataset_name: str
    """Vote store, made if there is none."""
    pretrained_model_name_or_path: list[str] = field(default_factory=lambda: ["assets/tiny-sd"])
    """What draws: folders in diffusers layout, hub ids or finished runs. Of several, each draws every prompt, and the voter is not told
    which one drew what."""
    prompts: list[str] = field(default_factory=list)
    """Prompts, files of them, or sets by name; captions of the embedded world if not given."""
    images_per_prompt: int = 2
    """Pictures of each prompt and model, in each turn."""
    same_seed: bool = False
    """Pair pictures of different models from the same seed alone, a fair comparison of the models; else all pictures of a prompt."""
    lora_scales: list[float] = field(default_factory=list)
    """Weights of the runs' adapters, each one a model of its own: 0 is the base, 1 the run, above it moves further."""
    ahead: int = 24
    """Draw until so many pairs wait that nobody has seen."""
    follow: bool = False
    """Go on, and draw again whenever fewer are left, until the process that started this one ends."""
    num_inference_steps: int = 25
    """Solver steps of every picture."""
    guidance_scale: float = 5.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed. Every picture has its own, made of this one, its prompt and its number."""
