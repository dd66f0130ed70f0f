"""The memory of each process of a launch that spreads a model's weights, by hand."""

from __future__ import annotations

from torch import nn

from diffalign.methods.builders import dry_run
from diffalign.methods.builders.memory_by_rank import gathered, memory_by_rank
from diffalign.methods.recipe import recipe_of
from tests.train.test_dry_run import config, outlined


class Inner(nn.Linear):
    """A block of 4 x 4 + 4 = 20 numbers."""

    def __init__(self):
        super().__init__(4, 4)


class Outer(nn.Module):
    """A block of 4 x 2 + 2 = 10 numbers, which holds another one."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = Inner(), nn.Linear(4, 2)


class Network(nn.Module):
    """Two blocks, one of them in a third, and 2 x 3 + 3 = 9 numbers outside of them."""

    _no_split_modules = ("Inner",)
    _repeated_blocks = ("Outer",)

    def __init__(self):
        super().__init__()
        self.begin, self.outer, self.inner = nn.Linear(2, 3), Outer(), Inner()


def test_what_is_gathered_at_once_is_the_rest_two_largest_blocks_and_the_gradients_of_one():
    network = Network()
    assert gathered(network) == 4 * (9 + 2 * (20 + 10) + 20)
    network.outer.requires_grad_(False)
    network.inner.requires_grad_(False)
    assert gathered(network) == 4 * (9 + 2 * (20 + 10) + 9)
    network.outer.inner.weight = network.inner.weight  # one parameter in two places is gathered once
    assert gathered(network) == 4 * (9 + 2 * (20 + 10) + 9)


def test_each_process_holds_its_share_of_what_is_held_and_all_of_what_it_works_in(micro_sd):
    own = config(str(micro_sd), train_method="full", mixed_precision="bf16", use_ema=True)
    recipe, drawn = recipe_of(own), outlined(own)
    held, rank = (dict(rows) for rows in (dry_run.held(own, recipe, drawn), memory_by_rank(own, recipe, drawn, 8)))
    assert {what: rank.pop(what) for what in held} == {what: size / 8 for what, size in held.items()}
    assert list(rank) == ["activations of 8 images", "gathered: two blocks, and one's gradients"]
