"""The training configuration: one flat frozen dataclass. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from diffalign.core.errors import ConfigError
from diffalign.core.specs import Spec, single
from diffalign.methods import METHODS
from diffalign.methods import checks as configcheck
from diffalign.rewards.heads.settings import check_reward

ALIASES = {"beta_dpo": "beta", "lora_rank": "rank", "train_data_dir": "dataset_name"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Fine-tune a model on preferences."""

    pretrained_model_name_or_path: str = "assets/tiny-sd"
    """Folder in diffusers layout, or of a causal language model with its tokenizer, or hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    variant: str | None = None
    """Weight-file variant, for example fp16."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder, one that is sound in half precision; the model's own runs in float32."""
    max_sequence_length: int | None = None
    """Tokens of the T5 prompt (SD3, Flux, PixArt); the pipeline's own default if not given."""
    guidance_scale: float = 1.0
    """What guidance-distilled models (Flux dev) are told in training; 1 means no guidance."""
    weighting_scheme: Literal["logit_normal", "uniform", "mode"] = "logit_normal"
    """Density of the training times of flow models (SD3, Flux), before the shift."""
    logit_mean: float = 0.0
    """Mean of the logit-normal density; above zero: noisier times."""
    logit_std: float = 1.0
    """Standard deviation of the logit-normal density."""
    mode_scale: float = 1.29
    """Scale of the mode density."""
    shift: float | None = None
    """Shift of a flow model's times towards noise; the model's own, by resolution, if not given."""
    transport: bool = False
    """Weigh flow models' squared error with (1 - t)^2, so that their beta is that of the noise; constant beta works better (2501.13918)."""

    dataset_name: str = ""
    """Preference table, dataset file, folder, or hub id."""
    dataset_split_name: str | None = None
    """Split of the dataset, for example train."""
    reader: str | None = None
    """Dataset layout (`diffalign data import --help` lists them); found by its columns if not given."""
    transforms: list[Spec] | None = None
    """Data transforms in order, instead of the method's own; for example [pairs, {flip_labels: {share: 0.2}}, orient]."""
    max_train_samples: int | None = None
    """Use only the first so many rows."""
    resolution: int | None = None
    """Side of the training images in pixels; the model's own if not given."""
    aspect_ratio_buckets: str | None = None
    """Sizes of the training images instead, as "height,width;height,width;...": a record's images all get the one nearest to their
    aspect ratios (the geometric mean), and a forward pass holds one size. `resolution` is then that of validation pictures."""
    random_crop: bool = False
    """Crop at random instead of in the middle; both candidates alike."""
    random_flip: bool = False
    """Mirror at random; both candidates alike."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and list them in the manifest, instead of stopping at the first."""
    max_length: int = 1024
    """Of texts: most tokens of prompt and completion together."""
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Of texts that are longer: keep_start cuts completions and leaves out records whose prompt alone fills max_length (as TRL);
    keep_end cuts the beginning of the prompt first."""
    chat_template: str | None = None
    """Of texts: a Jinja file for conversations, where the tokenizer brings no template of its own."""

    method: str = "diffusion_dpo"
    """Published method; names its objective, trajectory, reference and transforms."""
    objective: Spec | None = None
    """Another objective than the method's, for example ipo or hinge; constants as {hinge: {beta: 1000}}."""
    beta: float | None = None
    """Beta of the objective (also --beta_dpo): larger keeps the model closer to the reference. Of texts it multiplies nats: 0.1 is usual
    (5 with likelihood mean). Of images it multiplies half the mean squared error over the latent, as in the Diffusion-DPO release: 2000
    to 5000 is usual. From the diffusers SD1.5 script: double it. From a sum over the latent (SimpleTuner): multiply by twice its size,
    2 C H W (32768 for SD1.5 at 512 px). MaPO's is another quantity, the weight of the margin against the winner's error: 0.1, and larger
    moves further from the start."""
    label_smoothing: float | None = None
    """Share in [0, 0.5) of labels taken to be wrong (objectives dpo, robust, exo and others)."""
    trajectory: Spec | None = None
    """Another trajectory than the method's: forward, ddim_inversion or self_rollout; {ddim_inversion: {steps: 5, driver: reference}}."""
    trajectory_cache: int = 0
    """Points of the trajectory kept for each record, computed before training with the reference as driver; an epoch takes the next.
    A step of InPO or SmPO then costs what one of Diffusion-DPO does; it pays where training takes more epochs than points, or many
    runs share them. 0: computed in every step."""
    error: Spec | None = None
    """Another error than the method's: squared, or pseudo_huber of the estimates of x0."""
    curriculum: Spec | None = None
    """Order of the training, instead of a random one: {gap: {score: NAME, stages: 3}} shows pairs with a clear difference in that score
    first and close ones last (Curry-DPO)."""
    scores: dict[str, str] = field(default_factory=dict)
    """Which score of the table's candidates an objective reads as what, where the names differ: {gains: pickscore}."""
    reference: Literal["policy_start", "none"] | None = None
    """What the policy is compared with: the model it starts from, or nothing."""
    start_from: str | None = None
    """Finished run of images, on the same model, whose adapter (or denoiser) goes on; the reference is then that run's result."""
    proportion_empty_prompts: float = 0.0
    """Share of prompts dropped in training; 0.2 in the Diffusion-DPO release."""
    rounds: int = 1
    """Times that images are drawn, scored and trained on, each time by the model as it then is, with itself as reference."""
    generate: dict[str, Any] = field(default_factory=dict)
    """What rounds draw, instead of a dataset (which the first may have): flags of `diffalign pairs generate` as {prompts: FILE, scorers:
    [...], max_prompts: N}. Each has a seed of its own and max_train_steps; a round takes the next max_prompts of the prompts, or all."""

    reward_head: Spec | None = None
    """Of reward models, constants of the head: {bt: {hidden: 256, prompts: true}}, or {pal: {kind: A, score: angle, prototypes: 2}}."""
    held_out_share: float = 0.1
    """Of reward models: share of the prompts that are not trained on, drawn by the seed, for accuracy and calibration."""
    held_out_dataset_name: str | None = None
    """Of reward models: pairs to measure these on instead."""
    held_out_split_name: str | None = None
    """Of reward models: split of that dataset, for example test; `dataset_split_name` and `reader` are those of the training alone."""

    likelihood: Spec | None = None
    """Of texts, how token log-probabilities make a score: sum; mean (with it `dpo` is LN-DPO, `ipo` TRL's, `simpo` SimPO);
    {ld_dpo: {alpha: 0.5}}; joint (prompt and completion: DOVE)."""
    share_prompt: bool = True
    """Of texts: read the prompt once for all candidates; switched off by itself for models that cannot."""
    padding_free: bool = True
    """Of texts: pack records without padding; switched off by itself for models that cannot."""
    logits_chunk: int = 1024
    """Of texts: completion tokens that the output head takes at once; 0 for all logits at once, of prompts too."""
    precompute_ref_log_probs: bool = True
    """Of texts: the reference's log-probabilities are computed once, for each token, before training."""

    train_method: Literal["lora", "dora", "full", "user"] | None = None
    """Low-rank adapter, the same with learned magnitudes, all weights of the network, or a user branch beside the text's attention
    alone; lora if not given, user for PPD."""
    user_encoder: Spec | None = None
    """Another encoder of users than the method's; constants as {pairs: {max_shots: 8}}. Every one takes tokens and width (of a token).
    pairs: features (latents, a CLIP's folder or hub id, open_clip:ARCHITECTURE:WEIGHTS), max_shots, fit_steps, variational; vlm: model,
    shots; mixture: prototypes; one_hot; profile: profiles (JSON file {user: text}); vector: vectors (JSON file {user: [number, ...]})."""
    user_dropout: float = 0.1
    """Share of users dropped in training; the negative half of guidance uses the zero user."""
    rank: int = 8
    """Rank of the adapter."""
    lora_alpha: float | None = None
    """Scale of the adapter is lora_alpha / rank; the rank itself if not given."""
    lora_dropout: float = 0.0
    """Dropout in the adapter; adds noise to the policy alone, so zero is best with a reference."""
    lora_layers: list[str] | None = None
    """Names of the layers that get an adapter; if not given attention projections, of language models all linear layers but the head."""

    output_dir: str = "outputs/train"
    """Folder for weights, checkpoints, logs and pictures."""
    overwrite_output_dir: bool = False
    """Train anew in a folder that holds a run, and remove that run."""
    seed: int = 0
    """Seed of every draw. A draw belongs to a record and an epoch, not to a batch."""
    train_batch_size: int = 4
    """Records in one forward pass, for each process."""
    gradient_accumulation_steps: int = 1
    """Forward passes in an optimiser step; equals the batch that is as many times larger."""
    max_train_steps: int = 1000
    """Optimiser steps."""
    learning_rate: float = 1e-5
    """Peak learning rate."""
    lr_scheduler: str = "constant_with_warmup"
    """A schedule of diffusers: constant, constant_with_warmup, linear, cosine, ..."""
    lr_warmup_steps: int = 0
    """Optimiser steps of linear warm-up."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = "adamw"
    """AdamW, with 8-bit state, with that state paged to the CPU, or Adafactor with the fixed learning rate (as the SDXL recipes)."""
    use_8bit_adam: bool = False
    """The diffusers scripts' name for optimizer adamw_8bit."""
    adam_beta1: float = 0.9
    """First decay rate of AdamW."""
    adam_beta2: float = 0.999
    """Second decay rate of AdamW."""
    adam_weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    adam_epsilon: float = 1e-8
    """Epsilon of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the networks; errors and losses are in float32 always."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    sequential_candidates: bool = False
    """Run the candidates one after another with the same gradient: half the activation memory of a pair, one more forward pass."""
    quantization: Literal["nf4", "int8", "fp8"] | None = None
    """Weights of the frozen base under an adapter: nf4 (bitsandbytes), int8 or fp8 (torchao). The reference is the same base."""
    attention_backend: str | None = None
    """Attention by its name in diffusers: sdpa (also `native`), xformers, flash, ...; PyTorch's own if not given."""
    enable_xformers_memory_efficient_attention: bool = False
    """The diffusers scripts' name for attention_backend xformers."""
    channels_last: bool = False
    """Memory format of UNets that convolutions are faster in; the mathematics is the same."""
    torch_compile: bool = False
    """Compile the denoiser: a slow first step, faster ones after it."""
    use_ema: bool = False
    """Keep, and save, a moving average of the trained weights."""
    ema_decay: float = 0.999
    """Decay of the moving average."""
    cache: Literal["disk", "off"] = "disk"
    """Latents and prompt embeddings on disk before training, or made live in every step. (Of texts: see precompute_ref_log_probs.)"""
    cache_dir: str | None = None
    """Where the cache lies; beside the table if not given."""
    cache_variants: int = 1
    """Crops, flips and posterior draws kept for each record; an epoch takes the next."""
    dataloader_num_workers: int = 0
    """Processes that decode images."""

    checkpointing_steps: int = 500
    """Optimiser steps between checkpoints."""
    checkpoints_total_limit: int | None = 2
    """Checkpoints kept."""
    resume_from_checkpoint: str | None = None
    """`latest`, or the path of a checkpoint."""
    report_to: str | None = None
    """Tracker of accelerate: tensorboard, wandb, ... A log in train_log.jsonl is always written."""
    log_every: int = 1
    """Optimiser steps between log lines."""
    validation_prompts: list[str] = field(default_factory=list)
    """Prompts drawn (or answered) at step 0, every validation_steps and at the end, with the same seeds."""
    validation_steps: int = 500
    """Optimiser steps between validation grids (or texts)."""
    eval_every: int | None = None
    """Optimiser steps between evaluations against step 0 (the last step has one), which keep best/ and stop a run that over-optimises."""
    eval_prompts: list[str] = field(default_factory=list)
    """Prompts drawn for that, two images each with the same seeds: as `--prompts` of `diffalign eval` takes them."""
    eval_scorers: list[Spec] = field(default_factory=list)
    """Judges that training does not optimise; adherence, if not given, where all prompts are of the embedded world."""
    eval_reward: Spec | None = None
    """Scorer that training does optimise, if there is one. The implicit accuracy of the last `eval_every` steps (5 or more) is another."""
    eval_patience: int = 3
    """Evaluations in a row, with the reward above and a held-out score or the diversity clearly below step 0, that stop the run."""
    max_bad_steps: int = 10
    """Stop after so many skipped steps (not finite, or a spike) in a row."""
    spike_factor: float = 10.0
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

    @property
    def tuning(self) -> Literal["lora", "dora", "full", "user"]:
        """Return what is trained."""
        return self.train_method or ("lora" if self.users is None else "user")

    @property
    def users(self) -> dict[str, dict[str, Any]] | None:
        """Return {name: constants} of the user encoder, None where users are not told apart."""
        own = METHODS[self.method].users if self.user_encoder is None else self.user_encoder
        if own is None:
            return None
        name, constants = single("user_encoder", own)
        return {name: dict(constants)}

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Return (height, width) of the aspect-ratio buckets; none where all images become squares."""
        return configcheck.parse_buckets(self.aspect_ratio_buckets)

    @property
    def compares(self) -> bool:
        """Return whether the policy is compared with a reference."""
        return (self.reference or METHODS[self.method].reference) != "none"

    def check(self) -> TrainConfig:
        """Return the config, or raise ConfigError for the first value that cannot be meant."""
        configcheck.known("method", self.method, METHODS)
        method = METHODS[self.method]
        configcheck.check_ranges(self)
        configcheck.check_objective(self.part("objective"), compares=self.compares)
        transforms = method.transforms if self.transforms is None else self.transforms
        configcheck.check_users(self, transforms)
        if method.inference == "negative_guidance" and self.tuning == "dora":
            raise ConfigError(
                f"`{self.method}` gives an adapter that is summed with another, which DoRA's is not; set train_method to lora"
            )
        check_reward(self, trains_reward=method.inference == "reward")
        configcheck.check_switches(self)
        configcheck.check_buckets(self, transforms)
        configcheck.check_rounds(self, method.inference, transforms)
        configcheck.check_watch(self, method.inference, transforms)
        return self

    def part(self, kind: Literal["objective", "trajectory", "error"]) -> dict[str, dict[str, Any]]:
        """Return {name: constants} of a part: the config's own, else the method's; `beta` and `label_smoothing` go on top."""
        own = getattr(self, kind)
        name, constants = single(kind, getattr(METHODS[self.method], kind) if own is None else own)
        given = {"beta": self.beta, "label_smoothing": self.label_smoothing} if kind == "objective" else {}
        return {name: {**constants, **{constant: value for constant, value in given.items() if value is not None}}}
