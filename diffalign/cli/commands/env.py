"""`diffalign env`."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib import metadata

ABOUT = "versions, for a bug report"
HELP = ""
PACKAGES = ("diffalign", "torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "xformers")
PACKAGES += ("bitsandbytes", "torchao")


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Print versions for a bug report."""


def run(_: CONFIG) -> int:
    """Print what a bug report should say."""
    print(f"python {sys.version.split()[0]} on {platform.platform()}")
    for name in PACKAGES:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} not installed")
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"cuda: {', '.join(devices) or 'none'}; threads: {torch.get_num_threads()}")
    return 0
