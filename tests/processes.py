"""Training runs in two processes of their own, whose imports take seconds: any number of runs, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

EACH = """
import json, sys
from diffalign.methods.config import TrainConfig
from diffalign.train import align, rounds
for options in json.loads(sys.argv[1]):
    config = TrainConfig(**options)
    (rounds.train if config.generate else align.run)(config)
"""
LEARNT = ("pytorch_lora_weights.safetensors", "ip_adapter.safetensors", "user_encoder.safetensors")


def launch(folder: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Train with each of the settings in two processes of one thread; `folder` gets the script that does so.

    Rounds come last, for the processes part after them.
    """
    (folder / "each.py").write_text(EACH)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(folder / "each.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [*command, json.dumps(list(runs))]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def weights(output_dir: Path) -> dict[str, Tensor]:
    """Return what a run has learnt."""
    return {name: value for file in LEARNT if (output_dir / file).exists() for name, value in load_file(output_dir / file).items()}
