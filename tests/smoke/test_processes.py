"""Two processes train the batch that one process would: same data, same draws, same weights."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from diffalign.cli import main
from tests.micro import write_pairs

INVERSION = ["--method", "inpo", "--trajectory", "{ddim_inversion: {steps: 3, eta: 0.1, driver: policy}}"]
PERSONAL = ["--method", "ppd", "--user_encoder", "{pairs: {fit_steps: 2, fit_batch: 8}}"]


def words(batch_size, micro_sd, pairs_file, output_dir, options):
    """Return the command line of a run, in which every process takes `batch_size` pairs at a time."""
    given = ["train", "--pretrained_model_name_or_path", micro_sd, "--dataset_name", pairs_file, "--output_dir", output_dir]
    # The step is linear in the gradient and beta small: see test_train.py.
    given += ["--train_batch_size", batch_size, "--max_train_steps", 3, "--rank", 2, "--checkpointing_steps", 2]
    given += [*options, "--adam_epsilon", 1.0, "--learning_rate", 1.0, "--beta", 10, "--gradient_accumulation_steps", 2]
    return [str(word) for word in given]


def launch(processes, told):
    """Run the command line in so many processes of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "diffalign.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, *told], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def weights(output_dir):
    """Return what a run has learnt."""
    files = ("pytorch_lora_weights.safetensors", "ip_adapter.safetensors", "user_encoder.safetensors")
    return {name: value for file in files if (output_dir / file).exists() for name, value in load_file(output_dir / file).items()}


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Pairs of four users."""
    return write_pairs(tmp_path_factory.mktemp("voted") / "pairs.parquet", users=4)


@pytest.mark.parametrize("options", [[], INVERSION, PERSONAL], ids=["diffusion_dpo", "inpo", "ppd"])
def test_two_processes_give_the_weights_of_one(micro_sd, voted, tmp_path, options):
    assert main(words(4, micro_sd, voted, tmp_path / "one", options)) == 0
    launch(2, words(2, micro_sd, voted, tmp_path / "two", options))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-6
    assert max(value.abs().max().item() for name, value in one.items() if "lora_B" in name or "proj.3.weight" in name) > 1e-3
    assert (tmp_path / "two" / "checkpoint-2").is_dir()
