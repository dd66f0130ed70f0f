"""The trainer: one loop for every method, on accelerate. What a method is stands in its parts; no method is named here."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from diffalign.core.files import free
from diffalign.core.processes import first_alone
from diffalign.core.progress import progress
from diffalign.core.runs import CONFIG
from diffalign.core.types import Batch
from diffalign.data.sampler import Sampler, loader
from diffalign.data.view import View
from diffalign.infer.kinds.table import KINDS
from diffalign.methods.builders.anchor import open_anchor, with_anchor
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.checks import check_keys, kind_of
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import save_yaml
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Driver, Recipe, recipe_of
from diffalign.models import adapters
from diffalign.models.reference import EvalMode, exchanged
from diffalign.models.sharded import gathered, is_sharded
from diffalign.objectives import implicit_rewards
from diffalign.objectives.metrics import describe
from diffalign.train import checkpoint, precision, requests
from diffalign.train.anchor import Anchor
from diffalign.train.announce import announce
from diffalign.train.launch import make_accelerator, prepared
from diffalign.train.online import loop as online
from diffalign.train.optimizer import make_average, make_optimizer, make_schedule, restore_optimizer
from diffalign.train.overoptimisation import EVALUATIONS, Watch
from diffalign.train.run_identity import changes, check_same, identity
from diffalign.train.save import refused_by_disk, save_result, save_run
from diffalign.train.stages import Renewals
from diffalign.train.step import preference_step
from diffalign.train.step_guard import Guard
from diffalign.train.stopping import StoppedError, StopRequest

logger = logging.getLogger(__name__)
LOG = "train_log.jsonl"


def make_trainer(config: TrainConfig, recipe: Recipe, view: View, *, fit: bool = True) -> Trainer:
    """Return the trainer of a run, its model loaded and its caches filled.

    Without `fit`, for a run whose weights a checkpoint will replace, nothing is fitted before training.
    """
    accelerator = make_accelerator(config)
    name = recipe.kind or view.table.manifest["kind"]
    anchored = open_anchor(config, name)
    parts = with_anchor(config, KINDS[name].build(config, recipe, view, accelerator.device, fit=fit), anchored, accelerator.device)
    return Trainer(config, replace(parts, usage=view.usage.facts(), turns=Renewals.of(config, parts.reference)), accelerator)


def make_online_trainer(config: TrainConfig, recipe: Recipe) -> Trainer:
    """Return the trainer of a run that draws its own data, its model and its scorers loaded."""
    prompts = online.prompts_of(config, recipe)
    accelerator = make_accelerator(config)
    return Trainer(config, online.parts(config, recipe, prompts, accelerator.device), accelerator)


def trainer_for(config: TrainConfig) -> Trainer:
    """Return the trainer of a config as it stands: its keys are checked, its output folder is not."""
    check_keys(config)
    recipe = recipe_of(config, kind_of(config))
    if config.prompts:
        return make_online_trainer(config, recipe)
    return make_trainer(config, recipe, open_dataset(config, recipe))


class Trainer:
    """A run from its first step to its last: network, optimiser, schedule, moving average, guard, and the step they are at."""

    def __init__(self, config: TrainConfig, parts: Parts, accelerator: Accelerator) -> None:
        self.config, self.parts, self.accelerator = config, parts, accelerator
        self.output_dir = Path(config.output_dir)
        self.network = parts.backbone.network
        self.network.train()
        self.evaluating = EvalMode(self.network)
        self.parameters = adapters.trainable(self.network)
        self.policy, self.optimizer = prepared(accelerator, self.network, make_optimizer(config, parts.groups or self.parameters))
        self.spread = is_sharded(self.network)  # over processes, which then do together what the first does else
        self.schedule = make_schedule(config, self.optimizer)
        self.ema = make_average(config, self.parameters, drives=parts.recipe.driver == "ema")
        division = config.train_batch_size, config.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
        self.sampler = Sampler(len(parts.pairs), *division, config.seed, parts.pairs.buckets, parts.index)
        self.anchor = Anchor.of(config, parts, division)
        self.guard = Guard(config.max_bad_steps, config.spike_factor)
        self.watch = Watch.of(config)
        self.stop = StopRequest()
        self.step = 0
        self.precision: dict[str, float] = {}  # what rounding adds to margins, measured at step 0
        self.seconds: list[float] = []

    def fit(self) -> Path:
        """Train to the last step and return the output folder, which holds weights, log, pictures and the config."""
        config = self.config
        self._resume()
        self._begin()
        batches = loader(self.parts.pairs, self.sampler, self.step, config.max_train_steps, config.dataloader_num_workers)
        with self.stop.listening(), self._progress() as bar, (self.output_dir / LOG).open("a") as log:
            if self.step == 0:
                self._validate()
            if self.step == 0 and self.watch.due(0):
                self._log(log, self._evaluated({}))
            while self.step < config.max_train_steps and not self.watch.stopped:
                drawn = self._turn()
                if drawn is None:
                    break
                if self.step == 0:
                    self.precision = precision.noise(self, self._driving)
                    drawn |= self.precision
                start = time.perf_counter()
                scalars = self.optimizer_step(batches) | drawn
                self.seconds.append(time.perf_counter() - start)
                self.step += 1
                stop, save, saved = scalars.pop("stop") > 0.0, scalars.pop("save") > 0.0, False
                self.guard.watch(scalars, self.step)
                scalars = self._evaluated(scalars)
                if self.step % config.log_every == 0 or self.watch.due(self.step):
                    self._log(log, scalars)
                shown = {k: f"{scalars[k]:.3g}" for k in ("loss", "implicit_acc", "log_ratio/chosen") if k in scalars}
                bar.set_postfix(shown | (self.parts.turns.pace() if self.parts.turns else {}))
                bar.update()
                if stop or save or self.step % config.checkpointing_steps == 0:
                    saved = self._save_checkpoint()
                if stop and self.step < config.max_train_steps:
                    raise self._stopped(saved)
                ended = self.step == config.max_train_steps or self.watch.stopped
                if ended or self.step % config.validation_steps == 0 or self._asked_for(requests.SAMPLE):
                    self._validate()
        self._finish()
        return self.output_dir

    def _turn(self) -> dict[str, float] | None:
        """Draw the data of the steps to come, where the run draws its own and it is time; None where there is nothing more to learn."""
        turns = self.parts.turns
        if turns is None:
            return {}
        drawn = turns.turn(self.step, partial(self._driving, self.config.rollout_policy), self.parts)
        self._park()
        if turns.stopped:
            logger.warning("stopped at %s", turns.stopped)
            return None
        return drawn

    def optimizer_step(self, batches: Any) -> dict[str, float]:
        """Take one optimiser step over all forward passes, or skip it where the guard says so; return its scalars."""
        self._seed_dropout()
        scalars = self._gradients(batches)
        norm: Any = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        scalars["grad_norm"], scalars["lr"] = float(norm), float(self.schedule.get_last_lr()[0])
        # The scaler of fp16 skips overflowing steps by itself while it looks for its scale.
        scaled = self.accelerator.scaler is not None and scalars["loss"] == scalars["loss"]
        if self.guard.allows(scalars["loss"], 0.0 if scaled else scalars["grad_norm"], self.step + 1):
            self.optimizer.step()
            skipped = self.accelerator.optimizer_step_was_skipped
            self.guard.watch_overflow(skipped, self.step + 1)
            if self.ema is not None and not skipped:
                self.ema.step(self.parameters)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # clipping has unscaled, and the next clipping must find a fresh scaler
        self.schedule.step()
        self.optimizer.zero_grad()
        return scalars | {"skipped": self.guard.skipped}

    def _gradients(self, batches: Any) -> dict[str, float]:
        """Run the forward and backward passes of a step; return the means of their scalars over passes and processes."""
        passes, gathered, save = self.sampler.passes(self.step), [], float(self._asked_for(requests.SAVE))
        records, recipe = sum(map(len, passes)), self.parts.recipe
        anchored = self.anchor.gradients(self.step, self.policy, self.accelerator, self._driving) if self.anchor else {}
        for number, samples in enumerate(passes, 1):
            batch = next(batches).to(self.accelerator.device)
            generators = self.sampler.generators(samples)
            with contextlib.nullcontext() if number == len(passes) else self.accelerator.no_sync(self.policy):
                loss, scores = preference_step(
                    self.parts, self.policy, batch, generators, self._driving, sequential=self.config.sequential_candidates
                )
                penalty = self._penalty(batch)
                self.accelerator.backward((loss + penalty.pop("penalty", 0.0)) / (records / len(samples)))
            weight = len(samples) * len(passes) / records  # 1, unless micro-batches had to be split into buckets
            scalars = {
                "stop": loss.new_tensor(float(self.stop.signal is not None)),
                "save": loss.new_tensor(save),
                "loss": loss.detach(),
                **describe(scores, recipe.beta, implicit_rewards(recipe.objective, scores)),
                **penalty,
                **anchored,
            }
            gathered.append({name: weight * value for name, value in scalars.items()})
        names = list(gathered[0])
        means = torch.stack([torch.stack([scalars[name].float() for scalars in gathered]).mean() for name in names])
        reduced: Any = self.accelerator.reduce(means, "mean")
        return dict(zip(names, reduced.tolist(), strict=True))

    def _asked_for(self, request: str) -> bool:
        """Return whether somebody has asked for something at once; only the first process looks."""
        return self.accelerator.is_main_process and requests.taken(self.output_dir, request)

    def _seed_dropout(self) -> None:
        """Seed the one draw that torch makes by itself by the step, so that a resumed run repeats it."""
        if self.config.lora_dropout:
            torch.manual_seed(self.config.seed * 1_000_003 + self.step * self.sampler.processes + self.sampler.rank)

    def _penalty(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is added to a batch's loss beside the objective, under "penalty", and what is logged of it."""
        if self.parts.penalty is None:
            return {}
        return self.parts.penalty(batch.condition, self.step / self.config.max_train_steps)

    def _resume(self) -> None:
        """Go on from a checkpoint, if the config names one and there is one."""
        wanted = self.config.resume_from_checkpoint
        folder = checkpoint.find(self.output_dir, wanted) if wanted else None
        if folder is not None:
            self._load_checkpoint(folder)
            checkpoint.refuse_newer(self.output_dir, self.step)
        elif wanted:
            logger.info("%s: no checkpoint found, starting at step 0", self.output_dir)

    def _begin(self) -> None:
        """Write the config, and say what users of other scripts ask first."""
        config = self.config
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            for stale in self.output_dir.glob(".checkpoint-*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
            for log in (LOG, EVALUATIONS):
                checkpoint.keep_log(self.output_dir / log, self.step or -1)  # step 0 is logged again
            for request in (requests.SAVE, requests.SAMPLE):
                requests.taken(self.output_dir, request)  # one that an earlier process did not get to
            save_yaml(config, self.output_dir / CONFIG)
            announce(config, self.parts, self.parameters, self.sampler)
        self.accelerator.wait_for_everyone()
        if self.parts.turns is not None:
            self.parts.turns.begin(self.step)
        if self.accelerator.log_with:
            plain = {name: value for name, value in asdict(config).items() if isinstance(value, bool | int | float | str)}
            self.accelerator.init_trackers(f"diffalign-{config.method}", config=plain)
        self._park()

    def _progress(self) -> Any:
        """Return the bar of the steps; only the first process shows one."""
        hidden = not self.accelerator.is_main_process
        return progress(total=self.config.max_train_steps, initial=self.step, desc="train", unit="steps", hidden=hidden)

    def _park(self) -> None:
        """Take the encoders off the accelerator where everything they say is cached."""
        if not self.parts.live:
            self.parts.backbone.park()

    def _log(self, log: Any, scalars: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            log.write(json.dumps({"step": self.step, **scalars}) + "\n")
            log.flush()
        if self.accelerator.log_with:
            self.accelerator.log(scalars, step=self.step)

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be gone on from."""
        return identity(self.config, self.parts, self.sampler) | self.watch.identity()

    def _stopped(self, saved: bool) -> StoppedError:
        """Return the end of a run that a signal stops."""
        number = self.stop.signal or signal.SIGTERM  # another process of the launch got it
        cure = "go on with --resume_from_checkpoint latest" if saved else "its checkpoint could not be written"
        return StoppedError(f"stopped by {number.name} after step {self.step} of {self.config.max_train_steps}; {cure}", 128 + number)

    def _save_checkpoint(self) -> bool:
        """Write a checkpoint and return whether it is there; where the disk is full, training goes on without it."""
        saved = True
        if self.accelerator.is_main_process or self.spread:
            scaler = self.accelerator.scaler
            state = {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler else None,
                "guard": self.guard.state(),
                "watch": self.watch.state(),
                "precision": self.precision,
                "turns": self.parts.turns.state() if self.parts.turns else None,
            }
            limit = self.config.checkpoints_total_limit
            try:
                weights = adapters.kept(self.network) if self.spread else adapters.trained_state(self.network)
                save = checkpoint.save_shares if self.spread else checkpoint.save
                save(self.output_dir, self.step, weights, state, self._identity(), limit, self._result_of_checkpoint)
            except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own for a full disk
                saved = False
                room = free(self.output_dir)
                logger.warning("step %d: the checkpoint could not be written, training goes on without it (%s; %s)", self.step, error, room)
        self.accelerator.wait_for_everyone()
        return saved

    def _result_of_checkpoint(self, temporary: Path) -> None:
        """Write the adapter also as a run's result, which can be drawn with; of all weights it would be a second copy."""
        if self.parts.recipe.tuning in ("lora", "dora"):
            folder, facts = self.output_dir / f"checkpoint-{self.step}", {"steps": self.step, **self._identity()}
            with self._averaged(self.config.use_ema), gathered(self.network, here=self.accelerator.is_main_process):
                write = partial(save_run, self.parts, self.config, temporary, folder, facts)
                first_alone(write) if self.spread else write()

    def _load_checkpoint(self, folder: Path) -> None:
        """Take over weights and state of a checkpoint. Raises CheckpointError for one of another run."""
        facts = checkpoint.facts(folder)
        check_same(folder, facts, self._identity(), self.config, self.sampler.processes)
        changed = list(changes(self.output_dir / CONFIG, self.config))
        weights, state = checkpoint.load(folder, adapters.kept(self.network))
        adapters.load_trained_state(self.network, weights, folder / checkpoint.WEIGHTS)
        restore_optimizer(self.optimizer, self.schedule, state)
        if self.ema is not None and state["ema"]:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.guard.restore(state["guard"])
        self.watch.restore(state.get("watch", {}))  # which checkpoints of earlier versions lack
        self.precision = state.get("precision", {})
        if self.parts.turns is not None:
            self.parts.turns.restore(state["turns"])
        self.step = facts["step"]
        for change in changed:
            logger.info("%s from step %d", change, self.step)

    def _validate(self) -> None:
        """Answer the validation prompts with seeds 0, 1, ... into validation/step-N."""
        main = self.accelerator.is_main_process
        if self.config.validation_prompts and (main or self.spread):
            with self._as_result(), tempfile.TemporaryDirectory() as nowhere:
                file = (self.output_dir if main else Path(nowhere)) / "validation" / f"step-{self.step:06d}"
                KINDS[self.parts.kind].preview(self.parts, self.config, f"validation at step {self.step}", file)

    def _evaluated(self, scalars: dict[str, float]) -> dict[str, float]:
        """Return a step's scalars with what held-out judges say of pictures of the model as it stands, where it is time to ask them."""
        self.watch.follow(scalars)
        if not self.watch.due(self.step):
            return scalars
        if self.accelerator.is_main_process:
            with self._as_result():
                self.watch.look(self.parts, self.step, self._identity())
        return scalars | self.watch.shared()

    @contextlib.contextmanager
    def _as_result(self) -> Iterator[None]:
        """Let the network stand for the block as its result would be saved, ready to draw."""
        with self.evaluating(), self._averaged(self.config.use_ema):
            yield
        self._park()

    def _averaged(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Return a block in which the moving average stands in place of the raw weights, if it is wanted."""
        return exchanged(self.parameters, self.ema.shadow_params) if self.ema and wanted else contextlib.nullcontext()

    @contextlib.contextmanager
    def _driving(self, driver: Driver | None = None) -> Iterator[nn.Module]:
        """Give the network that runs the trajectory, or another one."""
        driver = driver or self.parts.recipe.driver
        if driver == "reference":
            with self.parts.reference.driving() as network:
                yield network
        else:
            with self._averaged(driver == "ema"), self.evaluating():
                yield self.network  # not its wrapper: processes may ask it a different number of times

    def _finish(self) -> None:
        """Write the trained weights (the moving average, if there is one) and the facts of the run."""
        if self.ema is not None and self.config.use_ema:
            self.ema.copy_to(self.parameters)
        with gathered(self.network, here=self.accelerator.is_main_process):
            if self.accelerator.is_main_process:
                median = round(statistics.median(self.seconds), 4) if self.seconds else None
                facts = {"steps": self.step, "skipped": self.guard.skipped, "step_seconds_median": median}
                facts |= {} if self.parts.measure is None else self.parts.measure(self.output_dir)
                facts |= self.precision | self.watch.facts() | self._identity()
                facts |= {} if self.parts.turns is None else self.parts.turns.finish(self.step)
                with refused_by_disk(self.output_dir):
                    save_result(self.parts, self.config, facts)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()
