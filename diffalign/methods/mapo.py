"""MaPO (Hong et al., 2406.06424) as released: a margin of bounded likelihoods plus the winner's denoising error, without a reference.

The structure is that of the released code: the paper's equations were not at hand. Its score depends on the error alone and not on
how hard an image is to denoise, so where one image of a pair is simply smoother, the margin is biased towards it.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

MAPO = Method(
    paper="2406.06424",
    source=Source("release", ("golden",), "the paper's equations were not read"),
    objective=spec("mapo", beta=0.1, snr=0.5, steps=1000.0),
    trajectory=spec("forward", share_noise=True),
    reference="none",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient")),
    about="pairs of images; no reference, one network evaluation a step",
)
