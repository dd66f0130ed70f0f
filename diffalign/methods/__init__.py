"""Methods by name. A method only names its parts; the parts and the trainer know no method."""

from __future__ import annotations

from diffalign.core.errors import CheckpointError, did_you_mean, shortened
from diffalign.core.runs import RUN, Run
from diffalign.methods.base import Method
from diffalign.methods.diffusion_dpo import DIFFUSION_DPO
from diffalign.methods.diffusion_npo import DIFFUSION_NPO
from diffalign.methods.dpo import DPO
from diffalign.methods.inpo import INPO
from diffalign.methods.mapo import MAPO
from diffalign.methods.ppd import PPD
from diffalign.methods.rank_dpo import RANK_DPO
from diffalign.methods.reward_bt import REWARD_BT
from diffalign.methods.reward_heads import REWARD_HEADS
from diffalign.methods.reward_pal import REWARD_PAL
from diffalign.methods.self_npo import SELF_NPO
from diffalign.methods.smpo import SMPO

METHODS: dict[str, Method] = {
    "diffusion_dpo": DIFFUSION_DPO,
    "mapo": MAPO,
    "smpo": SMPO,
    "inpo": INPO,
    "diffusion_npo": DIFFUSION_NPO,
    "self_npo": SELF_NPO,
    "rank_dpo": RANK_DPO,
    "ppd": PPD,
    "dpo": DPO,
    "reward_bt": REWARD_BT,
    "reward_pal": REWARD_PAL,
    **REWARD_HEADS,
}


def method_of(run: Run) -> Method:
    """Return the method of a finished run. Raises CheckpointError for a name that this version does not know."""
    if run.method not in METHODS:
        raise CheckpointError(f"{run.folder / RUN}: `method` is {shortened(run.method)!r}.{did_you_mean(run.method, METHODS)}")
    return METHODS[run.method]
