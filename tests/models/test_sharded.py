"""A network spread over the processes of a launch: here over one, which has the same parts as over many."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from torch.distributed import init_process_group
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from diffalign.models.reference import Start, exchanged
from diffalign.models.sharded import block_names, blocks, gathered, is_sharded, shard, spread_like, whole
from tests.processes import apart


class Block(nn.Linear):
    """A block of the network below."""


class Network(nn.Module):
    """Two blocks, and a layer that is in none; the second block does not train."""

    _no_split_modules = ("Block",)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = Block(3, 3), Block(3, 3), nn.Linear(3, 1)
        self.second.requires_grad_(False)

    def forward(self, x):
        return self.last(self.second(self.first(x)))


def trainable(network):
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def spread(meeting):
    """Spread a network in this process, which is all of its launch, and ask everything of it."""
    init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    torch.manual_seed(0)
    network, x = Network(), torch.ones(2, 3)
    before, state = network(x).detach(), {name: value.clone() for name, value in network.state_dict().items()}
    assert shard(network) is network
    assert is_sharded(network)
    assert isinstance(network.first, FSDPModule)
    assert torch.equal(network(x), before)

    others = [torch.zeros_like(parameter) for parameter in trainable(network)]
    start = Start.of(network)
    with torch.no_grad(), exchanged(trainable(network), others):
        assert not network(x).any()  # what gathers the weights sees the others
        with start.driving() as first:
            assert torch.equal(first(x), before)
        assert not network(x).any()
    assert torch.equal(network(x), before)
    assert not any(whole(other).any() for other in others)

    with gathered(network, here=True):
        assert type(network) is Network
        assert not any(isinstance(parameter, DTensor) for parameter in trainable(network))
        assert all(torch.equal(whole(value), state[name]) for name, value in network.state_dict().items())
    with gathered(network, here=False):
        assert all(isinstance(parameter, DTensor) for parameter in network.parameters())
    assert is_sharded(network)
    assert torch.equal(network(x), before)
    assert torch.equal(whole(spread_like(state["first.weight"], network.first.weight)), state["first.weight"])


def test_a_spread_network_computes_the_same_and_takes_other_weights_for_a_while(tmp_path):
    apart(tmp_path / "log", spread, tmp_path / "meeting")


def test_other_networks_are_left_alone():
    network = Network()
    with gathered(network, here=True):
        assert not is_sharded(network)
    assert [type(block) for block in blocks(network)] == [Block, Block]
    value = torch.ones(1)
    assert spread_like(value, network.last.bias) is value


def test_blocks_are_those_that_diffusers_lists():
    assert block_names(FluxTransformer2DModel) == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
    assert block_names(UNet2DConditionModel) >= {"BasicTransformerBlock", "ResnetBlock2D"}
