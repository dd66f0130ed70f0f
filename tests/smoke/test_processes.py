"""Two processes train the batch that one process would: same data, same draws, same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from diffalign.api import run
from diffalign.config import TrainConfig
from tests.micro import write_pairs

METHODS = {
    "diffusion_dpo": {},
    "inpo": {"trajectory": {"ddim_inversion": {"steps": 3, "eta": 0.1, "driver": "policy"}}},
    "ppd": {"user_encoder": {"pairs": {"fit_steps": 2, "fit_batch": 8}}},
}
EACH = """
import json, sys
from diffalign.api import run
from diffalign.config import TrainConfig
for options in json.loads(sys.argv[1]):
    run(TrainConfig(**options))
"""


def options(method, batch_size, micro_sd, pairs_file, output_dir):
    """Return the settings of a run, in which every process takes `batch_size` pairs at a time."""
    given = {"pretrained_model_name_or_path": str(micro_sd), "dataset_name": str(pairs_file), "output_dir": str(output_dir / method)}
    # The step is linear in the gradient and beta small: see test_train.py.
    steps = {"max_train_steps": 3, "rank": 2, "checkpointing_steps": 2, "gradient_accumulation_steps": 2, "train_batch_size": batch_size}
    return given | steps | {"method": method, "beta": 10.0, "adam_epsilon": 1.0, "learning_rate": 1.0} | METHODS[method]


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Pairs of four users."""
    return write_pairs(tmp_path_factory.mktemp("voted") / "pairs.parquet", users=4)


@pytest.fixture(scope="module")
def shared(micro_sd, voted, tmp_path_factory):
    """The folder with a run of each method, one after the other in two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "each.py").write_text(EACH)
    runs = json.dumps([options(method, 2, micro_sd, voted, folder) for method in METHODS])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(folder / "each.py"), runs]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def weights(output_dir):
    """Return what a run has learnt."""
    files = ("pytorch_lora_weights.safetensors", "ip_adapter.safetensors", "user_encoder.safetensors")
    return {name: value for file in files if (output_dir / file).exists() for name, value in load_file(output_dir / file).items()}


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_the_weights_of_one(micro_sd, voted, shared, tmp_path, method):
    run(TrainConfig(**options(method, 4, micro_sd, voted, tmp_path)))
    one, two = weights(tmp_path / method), weights(shared / method)
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-6
    assert max(value.abs().max().item() for name, value in one.items() if "lora_B" in name or "proj.3.weight" in name) > 1e-3
    assert (shared / method / "checkpoint-2").is_dir()
