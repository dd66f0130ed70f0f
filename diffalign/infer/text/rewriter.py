"""A language model as a function from prompts to texts, each text drawn by a seed of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from diffalign.core.errors import ConfigError
from diffalign.core.progress import progress
from diffalign.data.records import Message, Record
from diffalign.models.text.template import Template

BATCH = 64  # texts that grow together


class GumbelNoise(LogitsProcessor):
    """Adds to the log-probabilities of each text noise from its own generator, so that the largest is a sample of them (Gumbel-max).

    A text so depends on its seed alone, not on those beside it, and the global random state is left as it is.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators, self.temperature = [torch.Generator().manual_seed(seed) for seed in seeds], temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  # transformers passes both
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64) for generator in self.generators])
        gumbel = -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
        return scores.double() / self.temperature + gumbel.to(scores.device)


class Recorder(GumbelNoise):
    """Keeps the log-probability of each token that is drawn at temperature 1."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds, 1.0)
        self.log_probs: list[Tensor] = []  # (N,) float32 of each step, of texts that have ended too

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noisy = super().__call__(input_ids, scores)
        own = scores.float().log_softmax(dim=-1)
        self.log_probs.append(own.gather(-1, noisy.argmax(dim=-1, keepdim=True)).squeeze(-1))
        return noisy


@dataclass(frozen=True, slots=True)
class Sampled:
    """A text as the model drew it, token for token."""

    text: str  # without special tokens
    ids: Tensor  # (n,) int64, on the CPU: with the end-of-text token, unless the text is cut
    log_probs: Tensor  # (n,) float32, on the CPU, of the model that drew it


class Rewriter:
    """What `diffalign.load` returns for a language model: prompts in, texts out. `model` and `tokenizer` are stock ones.

    `conversational` says that the model was trained on conversations: a prompt is then one turn of a user, in the tokenizer's chat
    template. If not given, it is so wherever there is a template. Raises ConfigError if there is none, and it is needed.
    """

    def __init__(self, model: Any, tokenizer: Any, *, conversational: bool | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.conversational = tokenizer.chat_template is not None if conversational is None else conversational
        if self.conversational and tokenizer.chat_template is None:
            raise ConfigError("the model was trained on conversations, and its tokenizer has no chat template; set `chat_template`")

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]  # a str is a sequence of str, too
        self, prompts: str, *, seed: int | None = None, temperature: float = 1.0, max_new_tokens: int = 64
    ) -> str: ...

    @overload
    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int | None = None,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        num_return_sequences: int = 1,
    ) -> list[str]: ...

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int | None = None,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        num_return_sequences: int = 1,
    ) -> str | list[str]:
        """Return the text for each prompt, without special tokens; a single string for a single prompt.

        With `num_return_sequences` above one a list, all answers to the first prompt before those to the second. Answer i is drawn
        with seed + i, whatever the batch; fresh each time if `seed` is None. Temperature 0 takes the likeliest token always.
        """
        every = [prompts] if isinstance(prompts, str) else list(prompts)
        token_ids = [ids for ids in map(self.prompt_ids, every) for _ in range(num_return_sequences)]
        first = torch.Generator().seed() % 2**32 if seed is None else seed
        texts: list[str] = []
        for start in progress(range(0, len(token_ids), BATCH), desc="rewrite", unit="batches", hidden=len(token_ids) <= BATCH):
            part = token_ids[start : start + BATCH]
            texts += self._answers(part, range(first + start, first + start + len(part)), temperature, max_new_tokens)
        return texts[0] if isinstance(prompts, str) and num_return_sequences == 1 else texts

    def sampled(self, prompts: Sequence[str], seeds: Sequence[int], *, max_new_tokens: int = 64) -> list[Sampled]:
        """Return a text for each prompt and seed at temperature 1, with its tokens and their log-probabilities, to train on."""
        texts: list[Sampled] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            recorder = Recorder(seeds[part])
            grown = self._grown([self.prompt_ids(prompt) for prompt in prompts[part]], recorder, max_new_tokens).cpu()
            log_probs = torch.stack(recorder.log_probs, dim=1).cpu()
            for ids, own, text in zip(grown, log_probs, self._decoded(grown), strict=True):
                count = self._length(ids.tolist())
                texts.append(Sampled(text, ids[:count], own[:count]))
        return texts

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return what the model goes on from, written as in training."""
        turn = (Message("user", prompt),) if self.conversational else ()
        return Template(self.tokenizer).prompt_ids(Record("prompt", prompt, (), messages=turn, source="prompt")).tolist()

    @property
    def _ends(self) -> list[int]:
        """Return the tokens that end a text."""
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        return list(ends) if isinstance(ends, list) else [ends]

    def _length(self, ids: Sequence[int]) -> int:
        """Return how many of the tokens of a grown text are its own: up to the first that ends it."""
        return next((place + 1 for place, token in enumerate(ids) if token in self._ends), len(ids))

    def _decoded(self, grown: Tensor) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(grown, skip_special_tokens=True)]

    def _answers(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], temperature: float, max_new_tokens: int) -> list[str]:
        return self._decoded(self._grown(prompts, GumbelNoise(seeds, temperature) if temperature > 0.0 else None, max_new_tokens))

    @torch.no_grad()
    def _grown(self, prompts: Sequence[Sequence[int]], noise: GumbelNoise | None, max_new_tokens: int) -> Tensor:
        """Return the tokens (N, n) that follow the prompts; a text that has ended before others is padded."""
        settings = copy.deepcopy(self.model.generation_config)
        ends = self._ends
        end = ends[0]
        pad = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        # The draw is `GumbelNoise`'s: what a model's own settings say of sampling is left out.
        settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_length=None, max_new_tokens=max_new_tokens)
        settings.update(eos_token_id=ends, pad_token_id=pad)
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=self.model.device)
        drawn = LogitsProcessorList([] if noise is None else [noise])
        was_training = self.model.training
        self.model.eval()
        grown = self.model.generate(ids, attention_mask=mask, generation_config=settings, logits_processor=drawn)
        self.model.train(was_training)
        return grown[:, longest:]
