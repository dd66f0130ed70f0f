"""How far the rounding of half precision moves the margin of implicit rewards, measured before the first step.

At step 0 policy and reference are equal to the bit, rounding included, and their margin is zero. As soon as the weights differ a little,
the two are rounded differently, and beta multiplies the difference. So the policy is moved by as much as one update moves it, and margins
in half precision are compared with those of the same weights in float32.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from diffalign.models.reference import eval_mode
from diffalign.models.sharded import is_sharded
from diffalign.objectives.base import margin
from diffalign.train.rounding import rounded
from diffalign.train.step import Driving

if TYPE_CHECKING:
    from diffalign.train.trainer import Trainer

logger = logging.getLogger(__name__)
NOISE = "precision/noise"  # its name in the log
RECORDS = 32  # at least so many are measured, for single ones are far off now and then
MOST = 0.2  # the weight of a pair's gradient, sigmoid(-margin), is then off by a tenth, half of this, while margins are small
HALF = (torch.float16, torch.bfloat16)


class Exact(TorchFunctionMode):
    """Computes in float32 what would be computed in half precision, of weights as they are; nothing of it is kept."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device.type

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function on float32, without autocast; attributes are read as they are."""
        if func.__name__ == "__get__":
            return func(*args)
        wide = tree_map(_widened, (tuple(args), kwargs or {}))
        with torch.autocast(self.device, enabled=False):
            return func(*wide[0], **wide[1])


def _widened(value: Any) -> Any:
    """Return a tensor in half precision as float32, and float32 for the name of such a dtype."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    return torch.float32 if value in HALF and isinstance(value, torch.dtype) else value


@contextlib.contextmanager
def moved(parameters: Sequence[nn.Parameter], size: float, generator: torch.Generator) -> Iterator[None]:
    """Move each number of `parameters` by plus or minus `size` for the block, as AdamW's first update does; they are back to the bit."""
    kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    try:
        for parameter in parameters:
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            there = parameter.data.float().add_(signs.to(parameter.device), alpha=size)
            parameter.data.copy_(rounded(there.cpu(), generator) if parameter.dtype == torch.bfloat16 else there)
        yield
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)


def noise(trainer: Trainer, driving: Driving) -> dict[str, float]:
    """Return the root mean square, over records, of what rounding adds to a margin of implicit rewards, under NOISE, and report it.

    `driving` gives the network that runs the trajectory. Nothing where there is no such margin, in float32, or where the networks cannot
    compute in float32: quantised or sharded weights, and kernels of attention that are for half precision alone.
    """
    config, recipe, beta = trainer.config, trainer.parts.recipe, trainer.parts.recipe.beta
    wide = config.quantization is None and config.attention_name in (None, "native", "xformers")
    sharded = is_sharded(trainer.network)
    if config.mixed_precision == "no" or not wide or sharded or not trainer.accelerator.is_main_process:
        return {}
    if beta is None or trainer.parts.kind != "image" or not recipe.compares:
        return {}
    errors = torch.cat(list(_errors(trainer, driving)))
    noise = float(beta * errors.square().mean().sqrt())
    _report(noise, beta, len(errors), config.mixed_precision)
    return {NOISE: noise}


@torch.no_grad()
def _errors(trainer: Trainer, driving: Driving) -> Iterator[Tensor]:
    """Yield what rounding adds to the margins of log-ratios (B,), of records with one candidate to the log-ratio itself."""
    parts, network, sampler, count = trainer.parts, trainer.network, trainer.sampler, 0
    device = trainer.accelerator.device
    eager = torch.compiler.set_stance("force_eager") if trainer.config.torch_compile else contextlib.nullcontext()
    for samples in itertools.chain.from_iterable(map(sampler.passes, itertools.count())):
        batch = parts.pairs.to_batch([parts.pairs[index] for index in sampler.indices(samples)]).to(device)
        with driving() as driver:
            query = parts.likelihood.prepare(driver, batch, sampler.generators(samples))
        with eval_mode(network), moved(trainer.parameters, trainer.config.learning_rate, sampler.generators(samples)[0]):
            rounded = _margins(trainer, query, batch)
            with eager, Exact(device):
                exact = _margins(trainer, query, batch)
        yield rounded - exact
        count += len(samples)
        if count >= min(RECORDS, len(parts.pairs)):
            return


def _margins(trainer: Trainer, query: Any, batch: Any) -> Tensor:
    parts = trainer.parts
    scores = parts.likelihood.scores(parts.likelihood.score(trainer.network, query), parts.reference.score(parts.likelihood, query), batch)
    return margin(scores.log_ratio) if scores.policy.shape[1] > 1 else scores.log_ratio[:, 0]


def _report(found: float, beta: float, records: int, precision: str) -> None:
    """Log the noise, as a warning where it is not small beside 1, the scale of the logistic."""
    what = f"noise of the margin from precision: {found:.2g} (mixed_precision {precision}, beta {beta:g}, {records} records)"
    if found <= MOST:
        logger.info("%s", what)
        return
    logger.warning(
        "%s, not small beside 1, the scale of the loss: rounding blurs which pairs are learned, and implicit accuracies. "
        "mixed_precision no has none; residual_in_fp32 and a smaller beta lower it",
        what,
    )
