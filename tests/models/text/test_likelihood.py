"""The sequence likelihood: one set of numbers and gradients whatever the switches, and the sums that objectives see."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from diffalign.core.errors import ConfigError
from diffalign.core.types import Labels, TextBatch
from diffalign.models.text.forward import able, read
from diffalign.models.text.likelihood import LIKELIHOODS, Said, SequenceLikelihood, Switches, joint, ld_dpo, mean
from diffalign.models.text.segments import UnsupportedAttentionError
from diffalign.objectives import OBJECTIVES
from tests.models.text import models
from tests.paths import GOLDENS

PLAIN = Switches(share_prompt=False, padding_free=False, logits_chunk=0)
EVERY = [Switches(*flags, chunk) for flags in itertools.product((False, True), repeat=2) for chunk in (0, 3, 1024)]
GOLDEN = json.loads((GOLDENS / "text_losses.json").read_text())


def drawn(records: int, candidates: int, *, longest: int = 7, seed: int = 0) -> TextBatch:
    """Return random texts of different lengths; the first prompt is a single token."""
    draw = torch.Generator().manual_seed(seed)

    def text(length: int) -> torch.Tensor:
        return torch.randint(4, 320, (length,), generator=draw)

    prompts = [text(1 + 2 * b) for b in range(records)]
    completions = tuple(tuple(text(1 + (3 * b + 5 * k) % longest) for k in range(candidates)) for b in range(records))
    return TextBatch(tuple((ids,) * candidates for ids in prompts), completions, torch.ones(records))


def exact(model: Any) -> Any:
    """Return the model in float64 throughout; Llama's own norm computes in float32 whatever it is given."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LlamaRMSNorm):
                setattr(module, name, nn.RMSNorm(child.weight.shape[0], child.variance_epsilon))
    return model.double().train()


def outcome(model: Any, batch: TextBatch, switches: Switches) -> torch.Tensor:
    """Return a loss and its gradient by every weight, flat; each token counts with a weight of its own."""
    model.zero_grad()
    said = SequenceLikelihood(read, switches=switches).score(model, batch).tokens
    loss = (said * torch.arange(1, said.numel() + 1).view_as(said)).mean()
    loss.backward()
    return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters() if p.grad is not None)])


def agree(model: Any, batch: TextBatch, tolerance: float) -> None:
    """Compare the model's loss and gradients under every switch with those of the plain way."""
    expected = outcome(model, batch, PLAIN)
    for switches in EVERY:
        error = (outcome(model, batch, switches) - expected).abs().max() / expected.abs().max()
        assert error <= tolerance, switches


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
@pytest.mark.parametrize("candidates", [1, 2, 4])
def test_every_switch_gives_the_same_loss_and_gradients(make: Callable[[], Any], candidates: int):
    agree(exact(make()), drawn(3, candidates), 1e-9)
    agree(make().train(), drawn(3, candidates), 1e-5)


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_recomputed_activations_find_their_segments(make: Callable[[], Any]):
    model = exact(make())
    expected = outcome(model, drawn(2, 2), PLAIN)
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = outcome(model, drawn(2, 2), Switches())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_candidates_with_prompts_of_their_own_score_the_same_under_every_switch():
    batch = drawn(2, 2)
    others = tuple((own[0], torch.cat([own[0], own[0][:1]])) for own in batch.prompts)
    agree(exact(models.llama()), replace(batch, prompts=others), 1e-9)


class Wrapped(nn.Module):
    """A wrapper with nothing but a forward, as DistributedDataParallel is to what calls it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = inner, 0

    def forward(self, *args: Any, **inputs: Any) -> Any:
        self.calls += 1
        return self.module(*args, **inputs)


def test_a_wrapped_model_is_called_through_its_own_forward():
    model = Wrapped(models.llama().train())
    agree(model, drawn(2, 2), 1e-5)
    assert model.calls == 1 + len(EVERY)


def test_an_adapter_on_the_head_is_read_through_the_models_own_logits():
    from diffalign.models import adapters

    model = models.llama()
    adapters.add_lora(model, targets=["lm_head"], rank=2)
    with torch.no_grad():
        for parameter in adapters.trainable(model):
            parameter.fill_(0.1)
    agree(model.train(), drawn(2, 2), 1e-5)


class Largest(TorchDispatchMode):
    """Watches for the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.size = max([self.size, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


def test_nothing_has_the_size_of_a_packed_row_squared():
    batch, model = drawn(32, 2, longest=9), models.llama()
    tokens = sum(map(len, (ids for own in batch.completions for ids in own))) + sum(len(own[0]) for own in batch.prompts)
    with Largest() as seen:
        SequenceLikelihood(read, switches=Switches(logits_chunk=8)).score(model, batch).tokens.sum().backward()
    assert seen.size < tokens**2 / 4


def test_a_model_that_can_keeps_its_switches_and_one_that_cannot_is_named_with_the_reason(caplog: pytest.LogCaptureFixture):
    assert able(models.llama(), Switches(), 64) == able(models.gpt2(), Switches(), 64) == Switches()
    assert able(models.mistral(window=64), Switches(), 64) == Switches()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert able(models.mistral(window=8), Switches(), 9) == Switches(share_prompt=False, padding_free=False)
    (record,) = caplog.records
    assert "MistralForCausalLM: shared prompts and rows without padding is switched off" in record.message
    assert "window of 8 tokens, and texts have up to" in record.message


def test_a_window_that_a_short_probe_does_not_reach_counts_too():
    assert able(models.mistral(window=32), Switches(), 33) == Switches(share_prompt=False, padding_free=False)


@pytest.mark.filterwarnings("ignore")
def test_a_recurrent_model_is_read_the_plain_way():
    model = models.mamba()
    found = able(model, Switches(), 64)
    assert found == Switches(share_prompt=False, padding_free=False)
    agree_plainly = outcome(model.train(), drawn(2, 2), found), outcome(model, drawn(2, 2), PLAIN)
    torch.testing.assert_close(*agree_plainly, rtol=1e-5, atol=1e-5)


def test_a_head_with_more_than_a_matrix_is_read_through_the_models_own_logits(caplog: pytest.LogCaptureFixture):
    model = models.llama()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 2.0 * logits)
    assert able(model, Switches(), 64) == Switches(logits_chunk=0)
    assert "reading its head apart is switched off: log-probabilities of random tokens are off by" in caplog.text


def test_windows_shorter_than_a_text_are_refused_in_a_step_too():
    with pytest.raises(UnsupportedAttentionError, match="window of 4 tokens"):
        SequenceLikelihood(read).score(models.mistral(window=4), drawn(3, 2))


def test_a_model_generates_and_saves_as_before(tmp_path: Path):
    model, prompt = models.llama(), torch.tensor([[1, 7, 8]])
    before = model.generate(prompt, max_new_tokens=5, do_sample=False)
    SequenceLikelihood(read).score(model, drawn(2, 2))
    assert model.generate(prompt, max_new_tokens=5, do_sample=False).tolist() == before.tolist()
    model.save_pretrained(tmp_path)
    assert "segments" not in (tmp_path / "config.json").read_text()


def scores(aggregation: Any, pairs: list[tuple[list[float], list[float]]], **fields: Any):
    """Return the scores of token log-probabilities given by hand, policy and reference alike; prompts have two tokens."""
    lengths = [[len(tokens) for tokens in pair] for pair in pairs]
    scored = 1 if aggregation.joint else 0
    texts = tuple(tuple(torch.ones(n - scored, dtype=torch.int64) for n in own) for own in lengths)
    prompts = tuple((torch.ones(2, dtype=torch.int64),) * 2 for _ in pairs)
    batch = TextBatch(prompts, texts, torch.ones(len(pairs)), **fields)
    padded = torch.zeros(len(pairs), 2, max(map(max, lengths)), dtype=torch.float64)
    for b, pair in enumerate(pairs):
        for k, tokens in enumerate(pair):
            padded[b, k, : len(tokens)] = torch.tensor(tokens, dtype=torch.float64)
    return SequenceLikelihood(read, aggregation).scores(Said(padded), padded, batch)


def test_sums_are_over_all_tokens_of_a_completion():
    found = scores(LIKELIHOODS["sum"](), [([-1.0, -2.0], [-4.0]), ([-0.5], [-1.0, -1.0])])
    assert found.policy.tolist() == [[-3.0, -4.0], [-0.5, -2.0]]
    assert found.lengths is not None
    assert found.lengths.tolist() == [[2, 1], [1, 2]]
    assert not found.normalized
    assert found.tokens is None


def test_a_mean_is_the_sum_that_objectives_divide():
    found = scores(mean(), [([-1.0, -2.0], [-4.0])])
    assert found.policy.tolist() == [[-3.0, -4.0]]
    assert found.normalized


def test_tokens_beyond_the_shorter_completion_count_alpha():
    assert scores(ld_dpo(alpha=0.25), [([-1.0, -2.0, -4.0], [-8.0])]).policy.tolist() == [[-2.5, -8.0]]
    with pytest.raises(ConfigError, match="between 0 and 1"):
        ld_dpo(alpha=1.5)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_length_desensitised_sums_are_trls(alpha: float):
    pairs = [([*pair["pi_w_tok"]], [*pair["pi_l_tok"]]) for pair in GOLDEN["pairs"]]
    expected = torch.tensor(GOLDEN["pair_losses"][f"trl/sigmoid+ld_alpha{alpha}"]["ld_logps"], dtype=torch.float64)[:, :2]
    torch.testing.assert_close(scores(ld_dpo(alpha=alpha), pairs).policy, expected, rtol=0.0, atol=1e-9)


def test_prompt_and_completion_together_give_the_loss_of_dove():
    def told(who: str) -> Any:
        return scores(joint(), [tuple([p[f"prompt_{who}_{s}"], *p[f"{who}_{s}_tok"]] for s in "wl") for p in GOLDEN["pairs"]])

    found = OBJECTIVES["dpo"](replace(told("pi"), reference=told("ref").policy), beta=0.1)
    expected = torch.tensor(GOLDEN["pair_losses"]["dove"]["loss"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-9)


def test_what_records_say_reaches_the_objective():
    labels = Labels(torch.tensor([2.0]), torch.tensor([0.5]), {"gains": torch.tensor([[1.0, 0.0]])})
    found = scores(LIKELIHOODS["sum"](), [([-1.0], [-2.0])], labels=labels)
    assert (found.weight, found.offset, found.columns) == (labels.weight, labels.offset, labels.columns)


def test_token_fields_are_there_for_the_objectives_that_ask():
    batch, policy, other = drawn(2, 2), models.llama().train(), models.llama(seed=1)
    likelihood = SequenceLikelihood(read, needs=frozenset({"kl", "collision", "activation", "prompt"}))
    with torch.no_grad():
        reference = likelihood.score(other, batch)
        same = likelihood.score(policy, batch)
    found = likelihood.scores(likelihood.score(policy, batch), reference, batch).tokens
    assert found is not None
    for values in (found.policy, found.reference, found.kl, found.collision, found.activation):
        assert (values[~found.mask] == 0).all()
    assert (found.kl[found.mask] > 0).all()
    assert found.kl.requires_grad
    assert found.activation.amax(dim=2).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert likelihood.scores(same, same, batch).tokens.kl.abs().max() < 1e-5


def test_the_prompts_log_probabilities_are_what_joint_adds():
    batch, model = drawn(3, 2), models.llama().double()
    alone = SequenceLikelihood(read, needs=frozenset({"prompt"}))
    found = alone.scores(alone.score(model, batch), None, batch)
    both = SequenceLikelihood(read, joint())
    whole = both.scores(both.score(model, batch), None, batch)
    torch.testing.assert_close(whole.policy, found.policy + (found.tokens.prompt * found.tokens.prompt_mask).sum(dim=2))
    assert whole.lengths.tolist() == (found.lengths + torch.tensor([[0], [2], [4]])).tolist()
