"""A run that is killed with SIGKILL, wherever it is, goes on from its last checkpoint to bit-identical weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffalign.cli.main import main

STEPS = 40


def words(micro_sd, pairs_file, output_dir, *more):
    """Return the command line of a run."""
    options = {
        "pretrained_model_name_or_path": micro_sd,
        "dataset_name": pairs_file,
        "output_dir": output_dir,
        "max_train_steps": STEPS,
        "train_batch_size": 4,
        "rank": 2,
        "learning_rate": 1e-3,
        "checkpointing_steps": 3,
        "use_ema": None,
    }
    flags = [word for name, value in options.items() for word in ((f"--{name}",) if value is None else (f"--{name}", str(value)))]
    return ["train", *flags, *more]


@pytest.fixture(scope="module")
def one_thread():
    """Sums are taken in the order of one thread, as in the process that is killed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(micro_sd, pairs_file, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(words(micro_sd, pairs_file, folder)) == 0
    return folder


def log_steps(folder: Path) -> int:
    path = folder / "train_log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("kill_at", [1, 5, 20])
def test_a_killed_run_resumes_to_the_same_bits(micro_sd, pairs_file, uninterrupted, tmp_path, kill_at):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "diffalign.cli", *words(micro_sd, pairs_file, folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while log_steps(folder) < kill_at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (folder / "run.json").exists()
    assert main(words(micro_sd, pairs_file, folder, "--resume_from_checkpoint", "latest")) == 0
    name = "pytorch_lora_weights.safetensors"
    ours, whole = load_file(folder / name), load_file(uninterrupted / name)
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    logs = [[json.loads(line) for line in (f / "train_log.jsonl").read_text().splitlines()] for f in (folder, uninterrupted)]
    assert logs[0] == logs[1]
