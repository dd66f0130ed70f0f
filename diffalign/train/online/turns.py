"""A turn of online training: the old policy moves, a network draws, scorers judge, and the trainer's data are replaced."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from diffalign.core.errors import TableError
from diffalign.core.parts import Trained
from diffalign.core.processes import process_state
from diffalign.core.progress import progress
from diffalign.core.types import Likelihood
from diffalign.data.pictures import encode_image
from diffalign.data.prompts import subset
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.sampler import sample_generator
from diffalign.data.table import Table, write_table
from diffalign.infer.shards import seed_of
from diffalign.methods.builders.data import check_view, view_of
from diffalign.methods.config import TrainConfig
from diffalign.methods.online import steps_without_noise
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models.diffusion.rollout_plan import Branch
from diffalign.rewards.drift import diversity, features
from diffalign.train import checkpoint
from diffalign.train.online.drawing import Drawer, Drawings, noise_seed
from diffalign.train.online.influence import gradient, influences
from diffalign.train.online.judges import Judges, Pending
from diffalign.train.online.log import TURN, Log
from diffalign.train.online.pairs import ADVANTAGES, LOG_PROB, TRAINED, TurnPairs
from diffalign.train.online.policies import Policies
from diffalign.train.online.ratio import check_ratio
from diffalign.train.online.rewards import Combination, Rewards, ranks
from diffalign.train.online.trees import grown
from diffalign.train.step import preference_step

SPACING = 1_000_003  # between the seeds of two turns
REWARD, ADVANTAGE = "reward", "advantage"  # scores that all scorers together make
Loss = Callable[..., tuple[Tensor, Any]]  # of a network, a batch and its generators: the mean loss, and more
CHUNK = 32  # pictures that are drawn, and then judged, at once; more where a prompt has more
Drawing = Callable[[], AbstractContextManager[nn.Module]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn to one prompt of a turn, as it travels between processes."""

    place: int  # of the prompt in the turn
    answers: list[bytes] | list[str]  # K encoded pictures, or the texts that a language model wrote for pictures
    tensors: dict[str, Tensor]  # (K, ...): the latent, and the steps that were kept
    scores: dict[str, list[float]]  # K by scorer
    diversity: float


class Turns:
    """Draws a run's data turn by turn; see `diffalign.train.online`."""

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        prompts: Sequence[str],
        model: Trained,
        drawer: Drawer,
        judges: Judges,
        likelihood: Likelihood,
        pairs: TurnPairs,
        policies: Policies,
        *,
        branch: Branch | None = None,
        replays: bool = False,
        conversational: bool = False,
    ) -> None:
        self.config, self.recipe, self.prompts, self.model = config, recipe, prompts, model
        self.drawer, self.judges, self.likelihood, self.pairs = drawer, judges, likelihood, pairs
        self.policies = policies
        self.branch = branch  # how trees grow, where pictures are their leaves
        self.replays = replays  # whether what was drawn has kept log-probabilities, of the policy that drew it
        self.conversational = conversational  # whether a prompt is a turn of a user, to which a language model answers
        self.combination = Combination(config)
        self.log = Log(Path(config.output_dir))
        self.stopped: str | None = None
        self.reward = float("nan")  # mean of the last turn
        self.seconds = {"draw": 0.0, "score": 0.0, "update": 0.0}
        self.images = 0
        self._last = -1  # number of the turn that was drawn last
        self._ended: float | None = None  # when the last turn was drawn

    def begin(self, step: int) -> None:
        """Remove what an interrupted run drew at `step` or later."""
        if process_state().is_main_process:
            self.log.discard(-(-step // self.config.updates_per_turn))
        process_state().wait_for_everyone()

    def turn(self, step: int, drawing: Drawing, parts: Parts) -> dict[str, float]:
        """Draw anew if a turn begins at `step`; return what is logged of it, nothing within a turn.

        `parts` are those of the run, by whose loss weights follow gradients.
        A run that goes on within a turn opens it from the log. Where all pictures of every prompt are equally good, `stopped` says so, and
        the step must not be taken. Raises TableError for that in the first turn, and where no picture of a turn can be judged.
        """
        number, within = divmod(step, self.config.updates_per_turn)
        if within:
            if self.pairs.turn is None:
                self._open(number, *self.log.read(number))
            return {}
        self._count_updates()
        self.policies.begin(self.config, step)
        drawn, self._last = self._draw(number, drawing), number
        scores = {name: np.array([one.scores[name] for one in drawn]) for name in self.judges.names}
        loss = partial(preference_step, parts, driving=drawing)
        weights = self.combination.follow(lambda: self._influences(number, step, drawn, scores, loss))
        logged = self._judge(number, step, drawn, scores) | {f"weight/{name}": weight for name, weight in weights.items()}
        self._ended = time.perf_counter()
        return logged

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: copies of the policy, and what the combiner of rewards has learned."""
        return self.policies.state() | {"combination": self.combination.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.combination.restore(state["combination"])
        self.policies.restore(state)

    def finish(self, step: int) -> dict[str, Any]:
        """Join the log of all turns to one table, and return the facts of the run."""
        self._count_updates()
        turns = 1 + max((step - 1) // self.config.updates_per_turn, self._last)
        if process_state().is_main_process:
            self.log.join(turns - 1, self._resumable())
        facts = {"turns": turns, "images": turns * self.config.prompts_per_turn * self.config.images_per_prompt}
        run = {"online": facts, "turn_seconds": {name: round(value, 2) for name, value in self.seconds.items()}}
        return run | {"stopped": self.stopped} if self.stopped else run

    def _count_updates(self) -> None:
        """Count the time since the last turn was drawn as its updates'."""
        if self._ended is not None:
            self.seconds["update"] += time.perf_counter() - self._ended

    def pace(self) -> dict[str, str]:
        """Return what the progress shows: the reward, pictures a second of drawing and judging, and the shares of time."""
        whole = sum(self.seconds.values()) or 1.0
        rate = self.images / max(self.seconds["draw"] + self.seconds["score"], 1e-9)
        shares = {name: f"{seconds / whole:.0%}" for name, seconds in self.seconds.items()}
        return {"reward": f"{self.reward:.4g}", "images/s": f"{rate:.3g}", **shares}

    def prompts_of(self, number: int) -> list[str]:
        """Return the prompts of a turn."""
        return subset(self.prompts, self.config.prompts_per_turn, self.config.seed, number)

    def seeds(self, number: int, prompt: str) -> list[int]:
        """Return the seeds (K,) of a prompt's pictures in a turn, whatever is drawn beside it."""
        seed = self.config.seed + SPACING * number
        return [seed_of(seed, prompt, k) for k in range(self.config.images_per_prompt)]

    def _draw(self, number: int, drawing: Drawing) -> list[Drawn]:
        """Return the pictures of all prompts of a turn, with their scores, in order; every process draws its share of the prompts."""
        state, prompts = process_state(), self.prompts_of(number)
        share = range(state.process_index, len(prompts), state.num_processes)
        texts = [prompts[place] for place in share for _ in range(self.config.images_per_prompt)]
        seeds = [seed for place in share for seed in self.seeds(number, prompts[place])]
        start = time.perf_counter()
        with drawing():
            self.policies.draw()
            drawings, pending = self._drawings(number, texts, seeds)
        middle = time.perf_counter()
        scores = {name: np.concatenate([one[name]() for one in pending]) for name in self.judges.names} if pending else {}
        self.seconds["score"] += time.perf_counter() - middle
        self.seconds["draw"] += middle - start
        self.images += len(texts) * state.num_processes
        count, look, drawn = self.config.images_per_prompt, features("pixels"), []
        for i, place in enumerate(share):
            own = slice(i * count, (i + 1) * count)
            scored = {name: values[own].tolist() for name, values in scores.items()}
            kept = {name: tensor[own] for name, tensor in drawings.tensors.items()}
            images = drawings.images[own]
            answers = [encode_image(image) for image in images] if drawings.texts is None else drawings.texts[own]
            drawn.append(Drawn(place, answers, kept, scored, diversity(images, look)))
        return sorted(gather_object(drawn), key=lambda one: one.place)

    def _drawings(self, number: int, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Drawings, list[Pending]]:
        """Return what is drawn to N prompts, and the scores to come by chunk."""
        parts, pending, scoring = list[Drawings](), list[Pending](), 0.0
        update, group = number * self.config.updates_per_turn, self.config.images_per_prompt
        size = max(CHUNK // group, 1) * group
        with progress(total=len(prompts), desc=f"turn {number}: draw", unit="images", hidden=len(prompts) <= size) as bar:
            for start in range(0, len(prompts), size):
                part = slice(start, start + size)
                parts.append(self.drawer.draw(prompts[part], seeds[part], update, bar))
                before = time.perf_counter()
                pending.append(self.judges.ask(parts[-1].images, prompts[part]))
                scoring += time.perf_counter() - before
        self.seconds["score"] += scoring
        self.seconds["draw"] -= scoring  # it lies within what the caller counts as drawing
        return Drawings.of(parts), pending

    def _influences(self, number: int, step: int, drawn: Sequence[Drawn], scores: Mapping[str, np.ndarray], loss: Loss) -> dict[str, float]:
        """Return how much the gradient of each reward alone helps all, on one batch of the turn; every process takes its share of it."""
        network, alone = self.model.network, Combination(replace(self.config, combine=None))
        size, rank = self.config.train_batch_size, process_state().process_index
        share = range(rank * size, (rank + 1) * size)
        trained, gradients = [p for p in network.parameters() if p.requires_grad], dict[str, Tensor | None]()
        for name in self.judges.names:
            rewards, gradients[name] = alone.of({name: scores[name]}, self.prompts_of(number)), None
            if rewards.tied.all():
                continue
            tensors = {key: torch.stack([one.tensors[key] for one in drawn]) for key in drawn[0].tensors}
            rewards, tensors = self._of_trees(step, rewards, tensors)
            with tempfile.TemporaryDirectory(prefix="diffalign-") as folder:
                records = [self._record(number, step, one, rewards) for one in drawn]
                self._open(number, write_table(Path(folder) / name, records), tensors)
                places = [place % len(self.pairs) for place in share]
                rows = [self.pairs[place, number * self.pairs.passes] for place in places]
                batch = self.pairs.to_batch(rows).to(next(network.parameters()).device)
            generators = [sample_generator(self.config.seed, place) for place in places]
            value, _ = loss(network, batch, generators)
            gradients[name] = gradient(value, trained, self.config.max_grad_norm)
        return influences(gradients)

    def _judge(self, number: int, step: int, drawn: Sequence[Drawn], scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Write the log of a turn, go on with it, and return what is logged."""
        rewards = self.combination.of(scores, self.prompts_of(number))
        if not rewards.complete.any():
            raise TableError(f"turn {number}: no prompt has pictures that {', '.join(self.judges.names)} can all judge")
        if process_state().is_main_process:
            tensors = {name: torch.stack([one.tensors[name] for one in drawn]) for name in drawn[0].tensors}
            rewards, tensors = self._of_trees(step, rewards, tensors)
            records = [self._record(number, step, one, rewards) for one in drawn]
            ranked_by = {"rank_by": self.judges.names[0] if len(self.judges.names) == 1 else None}
            self.log.write(number, records, tensors, scorers=self.judges.about(), generated=ranked_by)
            self.log.forget({number, *self._resumable()})
        process_state().wait_for_everyone()
        self.reward = float(np.nanmean(rewards.rewards))
        logged = {"turn": float(number), "tied": float(rewards.tied.mean()), "diversity": float(np.mean([one.diversity for one in drawn]))}
        logged |= {f"reward/{name}": float(np.nanmean(values)) for name, values in scores.items() if np.isfinite(values).any()}
        logged |= {"reward_spread": float(rewards.rewards[rewards.complete].std(axis=1).mean())}
        if rewards.tied.all():
            self._stop(number, step)
        else:
            self._open(number, *self.log.read(number))
            if self.replays and self.config.rollout_policy == "policy":
                first = range(min(len(self.pairs), self.config.train_batch_size))
                rows = [self.pairs[place, number * self.pairs.passes] for place in first]
                check_ratio(self.likelihood, self.model.network, self.pairs.to_batch(rows), self.config, number)
        return logged

    def _of_trees(self, step: int, rewards: Rewards, tensors: dict[str, Tensor]) -> tuple[Rewards, dict[str, Tensor]]:
        """Return rewards and tensors with the advantages of trees, where pictures are their leaves."""
        if self.branch is None:
            return rewards, tensors
        plan, log_prob = self.branch.plan(step, self.config.num_inference_steps, steps_without_noise(self.config)), tensors.pop(LOG_PROB)
        learned = grown(self.branch, plan, rewards.rewards, log_prob.double().numpy())
        added = {ADVANTAGES: torch.from_numpy(learned.advantage).float(), TRAINED: torch.from_numpy(learned.trained)}
        return replace(rewards, advantages=learned.leaves), tensors | added

    def _stop(self, number: int, step: int) -> None:
        """Say that there is nothing to learn from a turn; an error in the first one, where nothing has been learned either."""
        judges, prompts = ", ".join(self.judges.names), self.config.prompts_per_turn
        why = f"the rewards by {judges} are the same for all pictures of each of the {prompts} prompts"
        if number == 0:
            raise TableError(
                f"{self.log.table(number)}: {why}, so there is nothing to learn; name scorers that tell them apart, or draw more pictures"
            )
        self.stopped = f"step {step}, turn {number}: {why}, so there is nothing more to learn"

    def _record(self, number: int, step: int, one: Drawn, rewards: Rewards) -> Record:
        """Return the pictures of a prompt; where one lacks a score, none has a reward, and none a rank."""
        prompt, complete = self.prompts_of(number)[one.place], rewards.complete[one.place]
        name, places = Path(self.config.pretrained_model_name_or_path).name, ranks(rewards.rewards[one.place])
        candidates = []
        for k, answer in enumerate(one.answers):
            scores = {score: values[k] for score, values in one.scores.items() if np.isfinite(values[k])}
            if complete:
                scores |= {REWARD: float(rewards.rewards[one.place, k]), ADVANTAGE: float(rewards.advantages[one.place, k])}
            image, text = (answer, None) if isinstance(answer, bytes) else (None, answer)
            rank = float(places[k]) if complete else None
            uid = f"{number:06d}-{one.place:04d}-{k:02d}"
            candidates.append(Candidate(image=image, text=text, scores=scores, rank=rank, model=name, uid=uid))
        meta = {TURN: str(number), "step": str(step), "seeds": " ".join(map(str, self.seeds(number, prompt)))}
        meta |= {key: str(getattr(self.config, key)) for key in ("num_inference_steps", "sample_guidance_scale", "rollout_policy")}
        if self.config.image_model is not None:
            meta |= {"image_model": self.config.image_model, "image_seed": str(noise_seed(self.config, prompt, step))}
        return Record(
            f"{number:06d}-{one.place:04d}",
            prompt,
            tuple(candidates),
            source=f"turn {number}, prompt {one.place}",
            messages=(Message("user", prompt),) if self.conversational else (),
            meta=meta,
        )

    def _open(self, number: int, table: Table, tensors: Mapping[str, Tensor]) -> None:
        """Train on a turn: on the prompts whose pictures were all judged, as the method's transforms say."""
        config = replace(self.config, dataset_name=str(table.path))
        view = view_of(table, config, self.recipe)
        if view.entries:
            check_view(view, config, self.recipe)
        self.pairs.open(number, view, tensors)

    def _resumable(self) -> set[int]:
        """Return the turns that a checkpoint lies within, which need their latents."""
        steps = checkpoint.steps(Path(self.config.output_dir))
        return {step // self.config.updates_per_turn for step in steps if step % self.config.updates_per_turn}
