"""Token log-probabilities in chunks are those of whole logits, with the same gradients, and keep no logits."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.models.text.head import Head, States, collision, divergence, label_log_probs

N, D, V = 7, 4, 11


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 3, 10, 3, 5, 1, 9])


def gradients(chunk: int | None, *, trained: bool, bias: bool) -> list[torch.Tensor]:
    """Return the log-probabilities and the gradients of a weighted sum; without a chunk, of plain log-softmax."""
    hidden, weight = drawn(N, D).requires_grad_(), drawn(V, D, seed=1).requires_grad_(trained)
    offset = drawn(V, seed=2).requires_grad_(trained) if bias else None
    if chunk is None:
        found = torch.log_softmax(torch.nn.functional.linear(hidden, weight, offset), dim=1)[torch.arange(N), LABELS]
    else:
        found = label_log_probs(States(hidden, Head(weight, offset)), LABELS, chunk)
    (found * drawn(N, seed=3)).sum().backward()
    return [found.detach(), *(x.grad for x in (hidden, weight, offset) if x is not None and x.grad is not None)]


@pytest.mark.parametrize("chunk", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_of_any_size_give_the_numbers_and_gradients_of_whole_logits(chunk: int, trained: bool, bias: bool):
    expected, found = gradients(None, trained=trained, bias=bias), gradients(chunk, trained=trained, bias=bias)
    assert len(found) == len(expected) == 2 + trained * (1 + bias)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", [False, True])
def test_no_logits_wait_for_the_backward_pass(trained: bool):
    kept: list[torch.Size] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.shape)
        return x

    hidden, weight = drawn(N, D).requires_grad_(), drawn(V, D, seed=1).requires_grad_(trained)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        label_log_probs(States(hidden, Head(weight)), LABELS, 3)
    assert kept
    assert not any(V in shape[1:] for shape in kept)


def test_half_precision_states_are_summed_in_float32():
    states = States(drawn(N, D).bfloat16(), Head(drawn(V, D, seed=1).bfloat16()))
    found = label_log_probs(states, LABELS, 3)
    assert found.dtype == torch.float32
    logits = (states.values @ states.head.weight.t()).float()
    torch.testing.assert_close(found, torch.log_softmax(logits, dim=1)[torch.arange(N), LABELS])


@pytest.mark.parametrize("trained", [False, True])
def test_a_float32_head_multiplies_in_the_precision_that_it_is_given(trained: bool):
    hidden, weight = drawn(N, D).float().requires_grad_(), drawn(V, D, seed=1).float().requires_grad_(trained)
    found = label_log_probs(States(hidden, Head(weight, dtype=torch.bfloat16)), LABELS, 3)
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    torch.testing.assert_close(found, torch.log_softmax(logits, dim=1)[torch.arange(N), LABELS])
    found.sum().backward()
    assert hidden.grad is not None
    assert (found.dtype, hidden.grad.dtype) == (torch.float32, torch.float32)
    assert weight.grad is None if not trained else weight.grad.dtype == torch.float32


def test_logits_themselves_are_read_without_a_head():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    found = label_log_probs(States(logits, None), torch.tensor([1]), 1)
    assert found.item() == pytest.approx(math.log(0.75))


def three_to_one() -> States:
    """Return states of probabilities 3/4 and 1/4."""
    return States(torch.tensor([[0.0, math.log(3.0)]] * 3, dtype=torch.float64), None)


@pytest.mark.parametrize("chunk", [0, 2])
def test_divergence_is_that_of_the_policy_from_the_reference(chunk: int):
    even = States(torch.zeros(3, 2, dtype=torch.float64).requires_grad_(), None)
    found = divergence(even, three_to_one(), chunk)
    # 3/4 log((3/4)/(1/2)) + 1/4 log((1/4)/(1/2)); its gradient is policy minus reference.
    torch.testing.assert_close(found, torch.full((3,), 0.75 * math.log(1.5) + 0.25 * math.log(0.5), dtype=torch.float64))
    found.sum().backward()
    torch.testing.assert_close(even.values.grad, torch.tensor([[0.25, -0.25]] * 3, dtype=torch.float64))


@pytest.mark.parametrize("chunk", [0, 2])
def test_divergence_reaches_the_head_that_is_trained(chunk: int):
    hidden, weight = drawn(N, D).requires_grad_(), drawn(V, D, seed=1).requires_grad_()
    other = States(drawn(N, D, seed=4), Head(drawn(V, D, seed=5)))
    divergence(States(hidden, Head(weight)), other, chunk).sum().backward()
    said = torch.softmax(hidden @ weight.t(), dim=1) - torch.softmax(other.logits(), dim=1)
    torch.testing.assert_close(hidden.grad, said @ weight)
    torch.testing.assert_close(weight.grad, said.t() @ hidden)


@pytest.mark.parametrize("chunk", [0, 2])
def test_collision_is_the_log_of_summed_squares(chunk: int):
    torch.testing.assert_close(collision(three_to_one(), chunk), torch.full((3,), math.log(10.0 / 16.0), dtype=torch.float64))
