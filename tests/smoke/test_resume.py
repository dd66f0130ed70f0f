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

STEPS = 40


def command(micro_sd, pairs_file, output_dir, *more):
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
    return [sys.executable, "-m", "diffalign.cli", "train", *flags, *more]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def train(*arguments):
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def uninterrupted(micro_sd, pairs_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(micro_sd, pairs_file, folder)
    return folder


def log_steps(folder: Path) -> int:
    path = folder / "train_log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("kill_at", [1, 5, 20])
def test_a_killed_run_resumes_to_the_same_bits(micro_sd, pairs_file, uninterrupted, tmp_path, kill_at):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(micro_sd, pairs_file, folder), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while log_steps(folder) < kill_at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (folder / "run.json").exists()
    train(micro_sd, pairs_file, folder, "--resume_from_checkpoint", "latest")
    name = "pytorch_lora_weights.safetensors"
    ours, whole = load_file(folder / name), load_file(uninterrupted / name)
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    logs = [[json.loads(line) for line in (f / "train_log.jsonl").read_text().splitlines()] for f in (folder, uninterrupted)]
    assert logs[0] == logs[1]
