"""The training configuration: one flat frozen dataclass. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from diffalign.core.keys import (
    ABOVE_ZERO,
    ANY,
    AT_LEAST_ONE,
    GROUP,
    NOT_NEGATIVE,
    SHARE,
    SHARE_BELOW_HALF,
    SHARE_BELOW_ONE,
    Kind,
    key,
)
from diffalign.core.specs import Spec

# Kinds of model that a key is for; a key that names none is for image and language models.
IMAGE: tuple[Kind, ...] = ("image",)
TEXT: tuple[Kind, ...] = ("text",)
REWARD: tuple[Kind, ...] = ("reward",)
CARD = ("card",)  # keys that a model card shows
HELP = ("help",)  # keys that --help shows; --help_all shows all
CARD_AND_HELP = CARD + HELP
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")  # of diffusers
ALIASES = {"beta_dpo": "beta", "lora_rank": "rank", "train_data_dir": "dataset_name"}
# Switches that stand for a value of another key: of two layers of settings, the upper one counts under either name.
SYNONYMS = {
    "use_8bit_adam": ("optimizer", "adamw_8bit"),
    "enable_xformers_memory_efficient_attention": ("attention_backend", "xformers"),
}
# Sections of the keys, by the first key of each.
SECTIONS = {
    "pretrained_model_name_or_path": "model",
    "dataset_name": "data",
    "prompts": "online: what the model draws or writes as it trains",
    "method": "method",
    "reward_head": "reward models",
    "likelihood": "language models",
    "train_method": "what is trained",
    "output_dir": "run",
    "train_batch_size": "steps and optimiser",
    "mixed_precision": "memory and speed",
    "checkpointing_steps": "checkpoints, logs and pictures",
    "eval_every": "evaluations and guards",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Fine-tune a model on preferences."""

    pretrained_model_name_or_path: str = key("assets/tiny-sd", kinds=ANY, changes="model", uses=HELP)
    """Folder in diffusers layout or of a causal language model; hub id; or .safetensors file of a whole model."""
    config_folder: str | None = key(None, kinds=IMAGE, changes="model")
    """Of a model in one file that is none of SD 1.x, 2.x, XL, 3 or 3.5: the folder of its configs and tokenizers, in diffusers layout.
    It is needed the first time."""
    revision: str | None = key(None, kinds=ANY, changes="model")
    """Hub revision (branch, tag or commit)."""
    variant: str | None = key(None, changes="model")
    """Weight-file variant, for example fp16."""
    pretrained_vae_model_name_or_path: str | None = key(None, kinds=IMAGE, changes="model")
    """Another autoencoder, one that is sound in half precision; the model's own runs in float32."""
    denoiser: str | None = key(None, kinds=IMAGE, changes="model", uses=HELP)
    """File (also GGUF, fp8) or folder of a denoiser alone, in place of the model's own. The model's other parts are used."""
    base_lora: list[str] = key([], kinds=IMAGE, changes="model")
    """LoRA files that are part of the base, in the layouts of start_from_lora, each as FILE or FILE:strength: fused into the weights of
    the policy and of the reference. Whatever uses the run fuses them, too."""
    max_sequence_length: int | None = key(None, ABOVE_ZERO, kinds=IMAGE, trait="large", resume=True, changes="model")
    """Tokens of the T5 prompt (SD3, Flux, PixArt); the pipeline's own default if not given."""
    guidance_scale: float = key(1.0, NOT_NEGATIVE, kinds=IMAGE, trait="guidance", resume=True)
    """Guidance scale that guidance-distilled models (Flux dev) get as an input in training; 1 means no guidance."""
    weighting_scheme: Literal["logit_normal", "uniform", "mode"] = key("logit_normal", kinds=IMAGE, trait="flow", resume=True)
    """Density of the training times of flow models (SD3, Flux), before the shift."""
    logit_mean: float = key(0.0, kinds=IMAGE, trait="flow", resume=True)
    """Mean of the logit-normal density; above zero: noisier times."""
    logit_std: float = key(1.0, ABOVE_ZERO, kinds=IMAGE, trait="flow", resume=True)
    """Standard deviation of the logit-normal density."""
    mode_scale: float = key(1.29, kinds=IMAGE, trait="flow", resume=True)
    """Scale of the mode density."""
    shift: float | None = key(None, ABOVE_ZERO, kinds=IMAGE, trait="flow", resume=True)
    """Shift of a flow model's times towards noise; the model's own, by resolution, if not given."""
    transport: bool = key(False, kinds=IMAGE, trait="flow", resume=True)
    """Weigh flow models' squared error with (1 - t)^2, so that their beta is that of the noise; constant beta works better (2501.13918)."""

    dataset_name: str = key("", kinds=ANY, changes="data", uses=HELP)
    """Preference table, dataset file, folder, or hub id."""
    dataset_split_name: str | None = key(None, kinds=ANY, changes="data", uses=HELP)
    """Split of the dataset, for example train."""
    reader: str | None = key(None, kinds=ANY, changes="data")
    """Dataset layout (`diffalign data import --help` lists them); found by its columns if not given."""
    transforms: list[Spec] | None = key(None, kinds=ANY, resume=True, uses=HELP)
    """Data transforms in order, instead of the method's own; for example [pairs, {flip_labels: {share: 0.2}}, orient]."""
    max_train_samples: int | None = key(None, AT_LEAST_ONE, kinds=ANY, changes="data", uses=HELP)
    """Use only the first so many rows."""
    resolution: int | None = key(None, ABOVE_ZERO, kinds=IMAGE, resume=True, changes="model", uses=CARD_AND_HELP)
    """Side of the training images in pixels; the model's own if not given."""
    aspect_ratio_buckets: str | None = key(None, kinds=IMAGE, resume=True)
    """Sizes of the training images instead, as "height,width;height,width;...": a record's images all get the one nearest to their
    aspect ratios (the geometric mean), and a forward pass holds one size. `resolution` is then that of validation pictures."""
    random_crop: bool = key(False, kinds=IMAGE, resume=True)
    """Crop at random instead of in the middle; both candidates alike."""
    random_flip: bool = key(False, kinds=IMAGE, resume=True, uses=HELP)
    """Mirror at random; both candidates alike."""
    skip_bad: bool = key(False, kinds=ANY, changes="data", uses=HELP)
    """Leave out rows that cannot be read, and list them, instead of stopping at the first. The list is in the manifest."""
    max_length: int = key(1024, AT_LEAST_ONE, kinds=TEXT, uses=HELP)
    """Of texts: most tokens of prompt and completion together."""
    truncation_mode: Literal["keep_start", "keep_end"] = key("keep_start", kinds=TEXT)
    """Of texts that are longer: keep_start cuts completions and leaves out records whose prompt alone fills max_length (as TRL);
    keep_end cuts the beginning of the prompt first."""
    chat_template: str | None = key(None, kinds=TEXT)
    """Of texts: a Jinja file for conversations, where the tokenizer brings no template of its own."""
    anchor_dataset_name: str | None = key(None, kinds=("image", "text"), changes="data")
    """Of a taste that is meant for some prompts (C3PO): a preference table of other prompts with the model's own pictures or answers to
    them (`diffalign pairs generate`; labels are not read). The model is kept where it is on these."""
    anchor_weight: float | None = key(None, ABOVE_ZERO, kinds=("image", "text"), resume=True)
    """Weight of the anchor's loss beside the objective's: of images about `beta`; of texts C3PO has 0.1 to 0.2."""
    anchor_objective: Spec | None = key(None, kinds=("image", "text"), resume=True)
    """Of the anchor: distil (stay at the reference's outputs; images alone, and their default) or denoise (likelihood of the model's own
    pictures or answers, which is C3PO's as released)."""

    prompts: list[str] = key([], changes="data", uses=HELP)
    """Instead of a dataset: prompts, files of them or sets by name, that the model draws (or writes) to as it trains, turn by turn."""
    scorers: list[Spec] = key([], changes="data", uses=HELP)
    """Scorers that judge what was drawn: [pickscore, {taste: {name: high}}]."""
    combine: Spec | None = key(None, resume=True, changes="data")
    """How several scorers make one reward: weighted, standardised, gdpo, log_sigmoid, product, lagrange, cfo, maxmin, hypervolume, gradient
    or {prompt_weights: {path: RUN}}, with constants as {weighted: {weights: {pickscore: 1, ocr: 0.5}}}; if not given, the mean share of the
    prompt's other pictures that an image beats."""
    advantages: dict[str, Any] = key({}, resume=True, changes="data")
    """Constants of the advantages: {spread: global, ddof: 0, eps: 1e-4, floor: 0, clip: 5} if not given, as Flow-GRPO has them; the
    deviation may be that of the `group`, or `none`."""
    images_per_prompt: int = key(8, GROUP, resume=True, changes="data", uses=HELP)
    """Pictures of a prompt in a turn, 2 to 64: the group that is compared. Of a language model, rewrites, with a picture each."""
    prompts_per_turn: int = key(8, AT_LEAST_ONE, resume=True, changes="data")
    """Prompts of a turn. Turns take the next ones of all prompts, mixed by the seed."""
    updates_per_turn: int = key(2, AT_LEAST_ONE, resume=True, changes="data")
    """Optimiser steps on what a turn has drawn; together they train on each of its prompts equally often."""
    num_inference_steps: int = key(25, AT_LEAST_ONE, resume=True, changes="data")
    """Solver steps of the pictures of a turn."""
    sample_guidance_scale: float = key(5.0, NOT_NEGATIVE, resume=True, changes="data")
    """Guidance of the pictures of a turn; 1 for none."""
    image_model: str | None = key(None, kinds=TEXT, changes="data", resume=True)
    """Of a language model that trains online: the model, or finished run, of images that draws what it writes."""
    max_completion_length: int = key(64, AT_LEAST_ONE, kinds=TEXT, resume=True, changes="data")
    """Of a language model that trains online: most tokens of what it writes to a prompt."""
    rollout: Spec | None = key(None, kinds=IMAGE, resume=True, changes="data")
    """A sampler with noise that draws a turn, whose steps are kept and trained on (objective clipped_ratio): cps, ddim, flow_sde or dance
    with {cps: {level: 0.8, size: 3, stay: 25}}: noise, and how many steps are kept, in a window that moves on after `stay` updates. Or a
    tree for each prompt, {branch: {splits: [0, 3, 6, 9], children: 2, kind: cps}}, whose leaves are the `images_per_prompt` pictures. The
    pipeline's own sampler if not given."""
    start_model_steps: int = key(0, NOT_NEGATIVE, kinds=IMAGE, resume=True, changes="data")
    """Last solver steps of the pictures of a turn that the model takes with which training began: a brake on details that only the judge
    likes (MixGRPO takes 20 of 50 so). With `rollout` they have no noise, and are not trained."""
    rollout_policy: Literal["policy", "reference", "ema"] = key("policy", resume=True, changes="data")
    """Who draws a turn: the policy, the reference (with `reference: old_policy` the old policy, as DiffusionNFT), or its average `ema`."""
    old_policy_decay: dict[str, Any] = key({}, kinds=IMAGE, resume=True)
    """With `reference: old_policy`, how it follows the policy at each turn's start: old = decay old + (1 - decay) policy, with decay
    min(uprate (step - flat), uphold). {} is the policy itself as the turn starts; {uprate: 0.001, uphold: 0.5} is DiffusionNFT's."""

    method: str = key("diffusion_dpo", kinds=ANY, resume=True, uses=HELP)
    """Published method; names its objective, trajectory, reference and transforms."""
    objective: Spec | None = key(None, kinds=ANY, uses=HELP)
    """Another objective than the method's, for example ipo or hinge; constants as {hinge: {beta: 1000}}."""
    beta: float | None = key(None, ABOVE_ZERO, kinds=ANY, uses=HELP)
    """Beta of the objective: larger keeps the model closer to the reference; 2000 to 5000 is usual for images, 0.1 for texts. Of texts it
    multiplies nats (5 is usual with likelihood mean). Of images it multiplies half the mean squared error over the latent, as in the
    Diffusion-DPO release. From the diffusers SD1.5 script: double it. From half a sum over the latent (SimpleTuner): multiply by its
    size, C H W (16384 for SD1.5 at 512 px). MaPO's is another quantity, the weight of the margin against the winner's error: 0.1, and
    larger moves further from the start."""
    label_smoothing: float | None = key(None, SHARE_BELOW_HALF, kinds=ANY)
    """Share in [0, 0.5) of labels taken to be wrong (objectives dpo, robust, exo and others)."""
    trajectory: Spec | None = key(None, kinds=IMAGE)
    """Another trajectory than the method's: {forward: {noisiest: 0.5}}, {ddim_inversion: {steps: 5}}, self_rollout."""
    trajectory_cache: int = key(0, NOT_NEGATIVE, kinds=IMAGE, resume=True)
    """Points of the trajectory kept for each record, computed before training with the reference as driver; an epoch takes the next.
    A step of InPO or SmPO then costs what one of Diffusion-DPO does; it pays where training takes more epochs than points, or many
    runs share them. 0: computed in every step."""
    error: Spec | None = key(None, kinds=IMAGE)
    """Another error than the method's: squared, or pseudo_huber of the estimates of x0."""
    sdpo_mu: float | None = key(None, SHARE, kinds=IMAGE)
    """Diffusion-SDPO, with any objective of pairs: the dispreferred image's gradient is scaled down where it would undo more than 1 - mu of
    the preferred image's. Released: 0.9 for SD1.5, 0.6 for SDXL, 0.2 with dspo. Not scaled if not given."""
    sdpo_scale: Literal["pair", "batch"] = key("pair", kinds=IMAGE)
    """One scale a pair, or, as the release, one for all pairs of a forward pass."""
    curriculum: Spec | None = key(None, kinds=ANY)
    """Order of the training, instead of a random one: {gap: {score: NAME, stages: 3}} shows pairs with a clear difference in that score
    first and close ones last, the order of Curry-DPO, which also has `reference: old_policy`."""
    scores: dict[str, str] = field(default_factory=dict)
    """Which score of the table's candidates an objective reads as what, where the names differ: {gains: pickscore}."""
    reference: Literal["policy_start", "old_policy", "none"] | None = key(None, resume=True, uses=HELP)
    """What the policy is compared with: the model it starts from, the policy as a turn (online) or a stage of the `curriculum` began, or
    nothing."""
    start_from: str | None = key(None, kinds=IMAGE, changes="data")
    """Finished run of images, on the same model, whose adapter (or denoiser) goes on; the reference is then that run's result."""
    start_from_lora: str | None = key(None, kinds=IMAGE, changes="data", uses=HELP)
    """LoRA file, or its folder, that is trained on: of kohya's scripts, ComfyUI, diffusers or peft. Its rank, alpha and layers are those
    of the file; the reference is the model with it."""
    proportion_empty_prompts: float = key(0.0, SHARE, kinds=IMAGE, resume=True)
    """Share of prompts dropped in training; 0.2 in the Diffusion-DPO release."""
    rounds: int = key(1, AT_LEAST_ONE, kinds=IMAGE, changes="nothing")
    """Times that images are drawn, scored and trained on, each time by the model as it then is, with itself as reference."""
    round_momentum: float = key(0.0, SHARE_BELOW_ONE, kinds=IMAGE)
    """How far beyond the result of the last round each round begins: by this share of the way of that round (Accelerated PO; 0.3)."""
    generate: dict[str, Any] = key({}, kinds=IMAGE, changes="data")
    """What rounds draw, instead of a dataset (which the first may have): flags of `diffalign pairs generate` as {prompts: FILE, scorers:
    [...], max_prompts: N}. Each has a seed of its own and max_train_steps; a round takes the next max_prompts of the prompts, or all."""

    reward_head: Spec | None = key(None, kinds=REWARD)
    """Of reward models, constants of the head: {bt: {hidden: 256, prompts: true}}, or {pal: {kind: A, score: angle, prototypes: 2}}."""
    held_out_share: float = key(0.1, kinds=REWARD)
    """Of reward models: share of the prompts that are not trained on, drawn by the seed, for accuracy and calibration."""
    held_out_dataset_name: str | None = key(None, kinds=REWARD)
    """Of reward models: pairs to measure these on instead."""
    held_out_split_name: str | None = key(None, kinds=REWARD)
    """Of reward models: split of that dataset, for example test; `dataset_split_name` and `reader` are those of the training alone."""

    likelihood: Spec | None = key(None, kinds=TEXT)
    """Of texts, how token log-probabilities make a score: sum; mean (with it `dpo` is LN-DPO, `ipo` TRL's, `simpo` SimPO);
    {ld_dpo: {alpha: 0.5}}; joint (prompt and completion: DOVE)."""
    rationale_weight: float | None = key(None, ABOVE_ZERO, kinds=TEXT, resume=True)
    """Of texts: weight of the negative log-likelihood of the column `rationale`, why one answer was preferred, beside any objective of
    pairs (2407.14477; released with 0.001, for it adds up tokens). `max_length` is also that of a prompt with both answers."""
    share_prompt: bool = key(True, kinds=TEXT)
    """Of texts: read the prompt once for all candidates; switched off by itself for models that cannot."""
    padding_free: bool = key(True, kinds=TEXT)
    """Of texts: pack records without padding; switched off by itself for models that cannot."""
    logits_chunk: int = key(1024, NOT_NEGATIVE, kinds=TEXT)
    """Of texts: completion tokens that the output head takes at once; 0 for all logits at once, of prompts too."""
    precompute_ref_log_probs: bool = key(True, kinds=TEXT)
    """Of texts: the reference's log-probabilities are computed once, for each token, before training."""

    train_method: Literal["lora", "dora", "full", "user", "controlnet"] | None = key(None, uses=CARD_AND_HELP)
    """Low-rank adapter, the same with magnitudes, all weights, a branch for users, or a ControlNet for conditioning images; lora if not
    given, user for PPD."""
    controlnet_model_name_or_path: str | None = key(None, kinds=IMAGE, changes="model")
    """Of train_method controlnet: folder or hub id of the ControlNet to start from; if not given, a copy of the
    denoiser's first blocks, which changes nothing yet. That of a finished run is its folder `controlnet`."""
    user_encoder: Spec | None = None
    """Another encoder of users than the method's; constants as {pairs: {max_shots: 8}}. Every one takes tokens and width (of a token).
    pairs: features (latents, a CLIP's folder or hub id, open_clip:ARCHITECTURE:WEIGHTS), max_shots, fit_steps, variational; vlm: model,
    shots; mixture: prototypes; one_hot; profile: profiles (JSON file {user: text}); vector: vectors (JSON file {user: [number, ...]});
    slider: attributes (scores of the table, of single pictures), dropout, frequency."""
    user_dropout: float = key(0.1, SHARE_BELOW_ONE)
    """Share of users dropped in training; the negative half of guidance uses the zero user."""
    rank: int = key(8, ABOVE_ZERO, uses=CARD_AND_HELP)
    """Rank of the adapter."""
    lora_alpha: float | None = key(None, ABOVE_ZERO, resume=True, uses=CARD_AND_HELP)
    """Scale of the adapter is lora_alpha / rank; the rank itself if not given."""
    lora_dropout: float = key(0.0, SHARE_BELOW_ONE)
    """Dropout in the adapter; adds noise to the policy alone, so zero is best with a reference."""
    train_text_encoder: bool = key(False, kinds=IMAGE, trait="clip", resume=True, uses=CARD)
    """Adapters for the CLIP text encoders of Stable Diffusion, too (attention, at the same rank); the reference is the model without both.
    Prompts are then encoded in every step."""
    text_encoder_lr: float | None = key(None, ABOVE_ZERO, kinds=IMAGE)
    """Learning rate of the text encoders' adapters; learning_rate if not given."""
    lora_layers: list[str] | None = key(None, uses=CARD)
    """Names of the layers that get an adapter (of the denoiser alone); if not given attention projections, of language models all linear
    layers but the head."""

    output_dir: str = key("outputs/train", kinds=ANY, changes="nothing", uses=HELP)
    """Folder for weights, checkpoints, logs and pictures."""
    overwrite_output_dir: bool = key(False, kinds=ANY, changes="nothing", uses=HELP)
    """Train anew in a folder that holds a run, and remove that run."""
    seed: int = key(0, NOT_NEGATIVE, kinds=ANY, resume=True, changes="data", uses=CARD_AND_HELP)
    """Seed of every draw. A draw belongs to a record and an epoch, not to a batch."""
    train_batch_size: int = key(4, ABOVE_ZERO, kinds=ANY, uses=HELP)
    """Records in one forward pass, for each process."""
    gradient_accumulation_steps: int = key(1, AT_LEAST_ONE, kinds=ANY, uses=HELP)
    """Forward passes in an optimiser step; as a batch that many times larger."""
    max_train_steps: int = key(1000, ABOVE_ZERO, kinds=ANY, uses=HELP)
    """Optimiser steps."""
    learning_rate: float = key(1e-5, ABOVE_ZERO, kinds=ANY, uses=CARD_AND_HELP)
    """Peak learning rate."""
    lr_scheduler: str = key("constant_with_warmup", kinds=ANY, uses=CARD_AND_HELP)
    """A schedule of diffusers: constant, constant_with_warmup, linear, cosine, ..."""
    lr_warmup_steps: int = key(0, NOT_NEGATIVE, kinds=ANY, uses=HELP)
    """Optimiser steps of linear warm-up."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = key("adamw", kinds=ANY, uses=HELP)
    """AdamW, with 8-bit state, with that state paged to the CPU, or Adafactor with the fixed learning rate (as the SDXL recipes)."""
    use_8bit_adam: bool = key(False, kinds=ANY)
    """The diffusers scripts' name for optimizer adamw_8bit."""
    adam_beta1: float = key(0.9, SHARE_BELOW_ONE, kinds=ANY)
    """First decay rate of AdamW."""
    adam_beta2: float = key(0.999, SHARE_BELOW_ONE, kinds=ANY)
    """Second decay rate of AdamW."""
    adam_weight_decay: float = key(1e-2, NOT_NEGATIVE, kinds=ANY)
    """Weight decay of AdamW."""
    adam_epsilon: float = key(1e-8, NOT_NEGATIVE, kinds=ANY)
    """Epsilon of AdamW."""
    max_grad_norm: float = key(1.0, ABOVE_ZERO, kinds=ANY)
    """Gradients are clipped to this norm."""
    mixed_precision: Literal["no", "fp16", "bf16"] = key("no", kinds=ANY, changes="model", uses=CARD_AND_HELP, resume=True)
    """Precision of the networks; errors and losses are in float32 always."""
    full_bf16: bool = key(False, kinds=IMAGE, resume=True, uses=CARD)
    """Of train_method full and mixed_precision bf16: weights and gradients are kept in bfloat16, too, which halves them. Updates are
    computed in float32 and rounded stochastically; to nearest, most would be lost. There is no moving average then."""
    residual_in_fp32: bool = key(False, kinds=IMAGE, resume=True, uses=CARD)
    """In half precision, keep the residual stream of the denoiser in float32: less noise in margins, more memory for activations."""
    gradient_checkpointing: bool = key(False, uses=HELP)
    """Recompute activations in the backward pass: less memory, more time."""
    sequential_candidates: bool = key(False, kinds=IMAGE)
    """Run the candidates one after another with the same gradient: half the activation memory of a pair, one more forward pass."""
    quantization: Literal["nf4", "int8", "fp8"] | None = key(None, resume=True, uses=HELP)
    """Weights of the frozen base under an adapter: nf4 (bitsandbytes), int8 or fp8 (torchao). The reference is the same base."""
    attention_backend: str | None = None
    """Attention by its name in diffusers: sdpa (also `native`), xformers, flash, ...; PyTorch's own if not given."""
    enable_xformers_memory_efficient_attention: bool = False
    """The diffusers scripts' name for attention_backend xformers."""
    channels_last: bool = key(False, kinds=IMAGE)
    """Memory format of UNets that convolutions are faster in; the mathematics is the same."""
    torch_compile: bool | Literal["regional"] = False
    """Compile the denoiser: a slow first step, faster ones after it. `regional` compiles its repeated blocks alone, which takes less."""
    use_ema: bool = key(False, kinds=ANY, resume=True)
    """Keep, and save, a moving average of the trained weights."""
    ema_decay: float = key(0.999, SHARE_BELOW_ONE, kinds=ANY, resume=True)
    """Decay of the moving average."""
    cache: Literal["disk", "off", "auto"] = key("disk", uses=HELP)
    """Latents and prompts on disk before training, made in every step, or (auto) what takes less time. Texts: precompute_ref_log_probs."""
    cache_dir: str | None = key(None, kinds=ANY, changes="nothing")
    """Where the cache lies; beside the table if not given."""
    cache_precision: Literal["float32", "bfloat16"] | None = key(None, kinds=IMAGE)
    """Of latents and prompt embeddings on disk; if not given, bfloat16 where mixed_precision is bf16, else float32."""
    cache_variants: int = key(1, AT_LEAST_ONE, kinds=IMAGE)
    """Crops, flips and posterior draws kept for each record; an epoch takes the next."""
    dataloader_num_workers: int = key(0, NOT_NEGATIVE, kinds=ANY, changes="nothing")
    """Processes that decode images."""

    checkpointing_steps: int = key(500, AT_LEAST_ONE, kinds=ANY, changes="nothing", uses=HELP)
    """Optimiser steps between checkpoints."""
    checkpoints_total_limit: int | None = key(2, AT_LEAST_ONE, kinds=ANY, changes="nothing", uses=HELP)
    """Checkpoints kept."""
    resume_from_checkpoint: str | None = key(None, kinds=ANY, changes="nothing", uses=HELP)
    """`latest`, or the path of a checkpoint."""
    report_to: str | None = key(None, kinds=ANY, changes="nothing", uses=HELP)
    """Trackers of accelerate: tensorboard, wandb, ..., several with commas, all, or none; train_log.jsonl is always written."""
    log_every: int = key(1, AT_LEAST_ONE, kinds=ANY, changes="nothing")
    """Optimiser steps between log lines."""
    validation_prompts: list[str] = key([], changes="nothing", uses=HELP)
    """Prompts drawn (or answered) at step 0, every validation_steps and at the end, with the same seeds."""
    validation_image: list[str] = key([], kinds=IMAGE, changes="nothing")
    """Of train_method controlnet: files of the conditioning images that the validation prompts are drawn to, one each, or one for all."""
    validation_steps: int = key(500, AT_LEAST_ONE, changes="nothing", uses=HELP)
    """Optimiser steps between validation grids (or texts)."""
    eval_every: int | None = key(None, AT_LEAST_ONE, kinds=IMAGE, uses=HELP)
    """Optimiser steps between evaluations against step 0 (the last step has one), which keep best/ and stop a run that over-optimises."""
    eval_prompts: list[str] = key([], uses=HELP)
    """Prompts drawn for that, two images each with the same seeds: as `--prompts` of `diffalign eval` takes them."""
    eval_scorers: list[Spec] = field(default_factory=list)
    """Judges that training does not optimise; adherence, if not given, where all prompts are of the embedded world."""
    eval_reward: Spec | None = None
    """Scorer that training does optimise, if there is one. The implicit accuracy of the last `eval_every` steps (5 or more) is another."""
    eval_num_inference_steps: int = key(25, AT_LEAST_ONE, kinds=IMAGE, resume=True)
    """Solver steps of the pictures of an evaluation."""
    eval_guidance_scale: float = key(5.0, NOT_NEGATIVE, kinds=IMAGE, resume=True)
    """Guidance of the pictures of an evaluation; 1 for none."""
    eval_patience: int = key(3, AT_LEAST_ONE)
    """Evaluations that ring the alarm, of the last so many and two more, that stop the run: held-out scores, or the look of pictures."""
    max_bad_steps: int = key(10, AT_LEAST_ONE, kinds=ANY)
    """Stop after so many skipped steps (not finite, or a spike) in a row."""
    spike_factor: float = key(10.0, NOT_NEGATIVE, kinds=ANY)
    """A loss above so many times the running median is a spike and its step is skipped; 0 switches this off."""

    @property
    def optimizer_name(self) -> str:
        """Return the optimiser, `use_8bit_adam` counted."""
        return "adamw_8bit" if self.use_8bit_adam else self.optimizer

    @property
    def attention_name(self) -> str | None:
        """Return the attention backend by its name in diffusers, None for the default."""
        name = "xformers" if self.enable_xformers_memory_efficient_attention else self.attention_backend
        return "native" if name == "sdpa" else name
