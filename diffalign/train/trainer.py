"""The trainer: one loop for every method, on accelerate. What a method is stands in its parts; no method is named here."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffalign.core.errors import CheckpointError
from diffalign.core.types import Batch, Scores
from diffalign.data.sampler import Sampler, loader
from diffalign.data.view import View
from diffalign.methods import METHODS
from diffalign.methods.build.bind import beta_of
from diffalign.methods.build.image import parts
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import save_yaml
from diffalign.models import adapters
from diffalign.models.reference import eval_mode, exchanged
from diffalign.objectives.implicit_reward import implicit_reward
from diffalign.objectives.metrics import describe
from diffalign.train import checkpoint
from diffalign.train.optimizer import make_optimizer
from diffalign.train.overoptimisation import EVALUATIONS, Watch
from diffalign.train.run_identity import identity
from diffalign.train.save import save_result
from diffalign.train.step import preference_step
from diffalign.train.step_guard import Guard
from diffalign.train.validation import preview

logger = logging.getLogger(__name__)
LOG = "train_log.jsonl"


class Trainer:
    """State of a run: network, optimiser, schedule, moving average, guard, and the step they are at."""

    def __init__(self, config: TrainConfig, view: View) -> None:
        self.config, self.view = config, view
        self.output_dir = Path(config.output_dir)
        self.watch = Watch.of(config)
        AcceleratorState._reset_state()  # else a second run in one process could not choose another precision
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=str(self.output_dir / "logs")),
        )
        wanted = config.resume_from_checkpoint
        self.resumed = checkpoint.find(self.output_dir, wanted) if wanted else None
        # The first process fills the caches on disk, the others find them filled.
        with self.accelerator.main_process_first():
            self.parts = parts(config, view, self.accelerator.device, fit=self.resumed is None)
        self.network = self.parts.backbone.network
        self.network.train()
        self.parameters = adapters.trainable(self.network)
        self.policy, self.optimizer = self.accelerator.prepare(self.network, make_optimizer(config, self.parts.groups or self.parameters))
        # Not prepared: accelerate would step it once for each process.
        self.schedule = get_scheduler(
            config.lr_scheduler, self.optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.max_train_steps
        )
        # As a driver the average follows at its decay from the first step (the release of Self-NPO), without diffusers' warm-up.
        drives = self.parts.driver == "ema"
        plain = {"min_decay": config.ema_decay, "update_after_step": -1} if drives else {}
        self.ema = EMAModel(self.parameters, decay=config.ema_decay, **plain) if config.use_ema or drives else None
        self.guard = Guard(config.max_bad_steps, config.spike_factor)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        division = config.train_batch_size, config.gradient_accumulation_steps, processes, rank
        self.sampler = Sampler(len(self.parts.pairs), *division, config.seed, self.parts.pairs.buckets, self.parts.index)
        self.beta = beta_of(self.parts.objective)
        self.step = 0
        self.seconds: list[float] = []

    def fit(self) -> Path:
        """Train to the last step and return the output folder, which holds weights, log, pictures and the config."""
        config = self.config
        self._begin()
        batches = loader(self.parts.pairs, self.sampler, self.step, config.max_train_steps, config.dataloader_num_workers)
        bar = tqdm(
            total=config.max_train_steps, initial=self.step, desc="train", disable=None if self.accelerator.is_main_process else True
        )
        with bar, (self.output_dir / LOG).open("a") as log:
            if self.step == 0 and self.watch.due(0):
                self._log(log, self._judged({}))
            while self.step < config.max_train_steps and not self.watch.stopped:
                start = time.perf_counter()
                facts = self.optimizer_step(batches)
                self.seconds.append(time.perf_counter() - start)
                self.step += 1
                self.guard.watch(facts, self.step)
                facts = self._judged(facts)
                if self.step % config.log_every == 0 or self.watch.due(self.step):
                    self._log(log, facts)
                bar.update()
                bar.set_postfix({k: f"{facts[k]:.3g}" for k in ("loss", "implicit_acc", "log_ratio/chosen") if k in facts})
                if self.step % config.checkpointing_steps == 0:
                    self._save_checkpoint()
                if self.step % config.validation_steps == 0 or self.step == config.max_train_steps or self.watch.stopped:
                    self._validate()
        self._finish()
        return self.output_dir

    def optimizer_step(self, batches: Any) -> dict[str, float]:
        """Take one optimiser step over all forward passes, or skip it where the guard says so; return its scalars."""
        config, gathered, passes = self.config, [], self.sampler.passes(self.step)
        if config.lora_dropout:  # the one draw that torch makes by itself; seeded by step, so that a resumed run repeats it
            torch.manual_seed(config.seed * 1_000_003 + self.step * self.sampler.processes + self.sampler.rank)
        records = sum(map(len, passes))
        for number, samples in enumerate(passes, 1):
            batch = next(batches).to(self.accelerator.device)
            generators = self.sampler.generators(samples)
            with contextlib.nullcontext() if number == len(passes) else self.accelerator.no_sync(self.policy):
                loss, scores = preference_step(
                    self.parts, self.policy, batch, generators, self._driving, sequential=config.sequential_candidates
                )
                known = self._penalty(batch)
                self.accelerator.backward((loss + known.pop("penalty", 0.0)) / (records / len(samples)))
            weight = len(samples) * len(passes) / records  # 1, unless micro-batches had to be split into buckets
            said = {"loss": loss.detach(), **describe(scores, self.beta, self._rewards(scores)), **known}
            gathered.append({name: weight * value for name, value in said.items()})
        names = list(gathered[0])
        means = torch.stack([torch.stack([g[name].float() for g in gathered]).mean() for name in names])
        norm: Any = self.accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm)
        reduced: Any = self.accelerator.reduce(means, "mean")
        facts: dict[str, float] = dict(zip(names, reduced.tolist(), strict=True))
        facts["grad_norm"], facts["lr"] = float(norm), float(self.schedule.get_last_lr()[0])
        # The scaler of fp16 skips overflowing steps by itself while it looks for its scale.
        scaled = self.accelerator.scaler is not None and facts["loss"] == facts["loss"]
        if self.guard.allows(facts["loss"], 0.0 if scaled else facts["grad_norm"], self.step + 1):
            self.optimizer.step()
            skipped = self.accelerator.optimizer_step_was_skipped
            self.guard.watch_overflow(skipped, self.step + 1)
            if self.ema is not None and not skipped:
                self.ema.step(self.parameters)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # clipping has unscaled, and the next clipping must find a fresh scaler
        self.schedule.step()
        self.optimizer.zero_grad()
        return facts | {"skipped": self.guard.skipped}

    def _rewards(self, scores: Scores) -> Tensor:
        """Return the implicit rewards (B, K) that the objective trains."""
        ((name, constants),) = self.config.part("objective").items()
        return implicit_reward(name, scores, constants)

    def _penalty(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is added to a batch's loss beside the objective, under "penalty", and what is logged of it."""
        if self.parts.penalty is None:
            return {}
        return self.parts.penalty(batch.condition, self.step / self.config.max_train_steps)

    def _begin(self) -> None:
        """Resume if asked to, write the config, and draw the validation grid of the model as it starts."""
        config = self.config
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            for stale in self.output_dir.glob(".checkpoint-*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
        if self.resumed is not None:
            self._load_checkpoint(self.resumed)
            checkpoint.refuse_newer(self.output_dir, self.step)
        elif config.resume_from_checkpoint:
            logger.info("%s: no checkpoint found, starting at step 0", self.output_dir)
        if self.accelerator.is_main_process:
            for log in (LOG, EVALUATIONS):
                checkpoint.keep_log(self.output_dir / log, self.step or -1)  # what step 0 says is said anew
            save_yaml(config, self.output_dir / "config.yaml")
            self._announce()
        self.accelerator.wait_for_everyone()
        if config.report_to:
            plain = {name: value for name, value in asdict(config).items() if isinstance(value, bool | int | float | str)}
            self.accelerator.init_trackers(f"diffalign-{config.method}", config=plain)
        self._park()
        if self.step == 0:
            self._validate()

    def _park(self) -> None:
        """Take the encoders off the accelerator where everything they say is cached."""
        if self.config.cache == "disk":
            self.parts.backbone.park()

    def _announce(self) -> None:
        """Say what users of other scripts ask first: the scale of beta, the effective batch, and how much is trained."""
        config, backbone = self.config, self.parts.backbone
        paper = METHODS[config.method].paper_batch
        logger.info("%d records, %d trainable parameters", len(self.parts.pairs), sum(p.numel() for p in self.parameters))
        logger.info("effective batch %d records%s", self.sampler.effective, f" (paper: {paper})" if paper else "")
        if self.beta is not None and config.compares:
            logger.info("%s", backbone.beta_in_words(self.beta))

    def _log(self, log: Any, facts: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            log.write(json.dumps({"step": self.step, **facts}) + "\n")
            log.flush()
        if self.config.report_to:
            self.accelerator.log(facts, step=self.step)

    def _facts(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be gone on from."""
        return identity(self.config, self.view, self.parts, self.sampler) | self.watch.asked()

    def _save_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler else None,
                "guard": self.guard.state(),
                "watch": self.watch.state(),
            }
            limit = self.config.checkpoints_total_limit
            checkpoint.save(self.output_dir, self.step, adapters.trained_state(self.network), state, self._facts(), limit)
        self.accelerator.wait_for_everyone()

    def _load_checkpoint(self, folder: Path) -> None:
        found, expected = checkpoint.facts(folder), self._facts()
        for name, value in expected.items():
            if found.get(name) != value:
                raise CheckpointError(f"{folder}: made with {name} {found.get(name)}, this run has {value}; choose another output_dir")
        weights, state = checkpoint.load(folder)
        adapters.load_trained_state(self.network, weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None and state["ema"]:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.guard.restore(state["guard"])
        self.watch.restore(state.get("watch", {}))  # which checkpoints of earlier versions lack
        self.step = found["step"]

    def _validate(self) -> None:
        """Answer the validation prompts with seeds 0, 1, ... into validation/step-N.png, or of texts step-N.txt."""
        # Two networks would be needed to show what full fine-tuning for guidance is for.
        whole = METHODS[self.config.method].inference == "negative_guidance" and self.config.tuning == "full"
        if self.config.validation_prompts and self.accelerator.is_main_process and not whole:
            file = self.output_dir / "validation" / f"step-{self.step:06d}"
            with self._shown():
                preview(self.parts, self.config, f"validation at step {self.step}", file)

    def _judged(self, facts: dict[str, float]) -> dict[str, float]:
        """Return a step's facts with what held-out judges say of pictures of the model as it stands, where it is time to ask them."""
        self.watch.follow(facts)
        if not self.watch.due(self.step):
            return facts
        if self.accelerator.is_main_process:
            with self._shown():
                self.watch.look(self.parts, self.step, self._facts())
        return facts | self.watch.together()

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """Let the network stand for the block as its result would be saved, ready to draw."""
        with eval_mode(self.network), self._averaged(self.config.use_ema):
            yield
        self._park()

    def _averaged(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Return a block in which the moving average stands in place of the raw weights, if it is wanted."""
        return exchanged(self.parameters, self.ema.shadow_params) if self.ema and wanted else contextlib.nullcontext()

    @contextlib.contextmanager
    def _driving(self) -> Iterator[nn.Module]:
        """Give the network that runs the trajectory."""
        if self.parts.driver == "reference":
            with self.parts.reference.driving() as network:
                yield network
        else:
            with self._averaged(self.parts.driver == "ema"), eval_mode(self.network):
                yield self.network  # not its wrapper: processes may ask it a different number of times

    def _finish(self) -> None:
        """Write the trained weights (the moving average, if there is one) and the facts of the run."""
        if self.ema is not None and self.config.use_ema:
            self.ema.copy_to(self.parameters)
        if self.accelerator.is_main_process:
            median = round(statistics.median(self.seconds), 4) if self.seconds else None
            facts = {"steps": self.step, "skipped": self.guard.skipped, "step_seconds_median": median}
            facts |= {} if self.parts.measure is None else self.parts.measure(self.output_dir)
            save_result(self.parts.backbone, self.config, facts | self.watch.facts() | self._facts())
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()  # so that every process finds the result; the group stays for what comes next
