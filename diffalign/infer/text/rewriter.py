"""A language model as a function from prompts to texts, each text drawn by a seed of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
        token_ids = [ids for ids in map(self._ids, every) for _ in range(num_return_sequences)]
        first = torch.Generator().seed() % 2**32 if seed is None else seed
        texts: list[str] = []
        for start in progress(range(0, len(token_ids), BATCH), desc="rewrite", unit="batches", hidden=len(token_ids) <= BATCH):
            part = token_ids[start : start + BATCH]
            texts += self._answers(part, range(first + start, first + start + len(part)), temperature, max_new_tokens)
        return texts[0] if isinstance(prompts, str) and num_return_sequences == 1 else texts

    def _ids(self, prompt: str) -> list[int]:
        """Return what the model goes on from, written as in training."""
        turn = (Message("user", prompt),) if self.conversational else ()
        return Template(self.tokenizer).prompt_ids(Record("prompt", prompt, (), messages=turn, source="prompt")).tolist()

    @torch.no_grad()
    def _answers(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], temperature: float, max_new_tokens: int) -> list[str]:
        settings = copy.deepcopy(self.model.generation_config)
        ends = settings.eos_token_id if settings.eos_token_id is not None else self.tokenizer.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends
        pad = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        # The draw is `GumbelNoise`'s: what a model's own settings say of sampling is left out.
        settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_length=None, max_new_tokens=max_new_tokens)
        settings.update(eos_token_id=ends, pad_token_id=pad)
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=self.model.device)
        drawn = LogitsProcessorList([GumbelNoise(seeds, temperature)] if temperature > 0.0 else [])
        was_training = self.model.training
        self.model.eval()
        grown = self.model.generate(ids, attention_mask=mask, generation_config=settings, logits_processor=drawn)
        self.model.train(was_training)
        return [text.strip() for text in self.tokenizer.batch_decode(grown[:, longest:], skip_special_tokens=True)]
