"""Signals, full disks, launchers, and runs that go on with other settings."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError, TrainingError
from diffalign.core.keys import facts_of
from diffalign.core.locks import LOCK, locked, owner
from diffalign.core.runs import Run
from diffalign.infer.load import load
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import save_yaml
from diffalign.train import checkpoint, requests, save
from diffalign.train.align import train
from diffalign.train.run_identity import changes
from diffalign.train.stopping import StoppedError, StopRequest
from diffalign.train.trainer import Trainer, trainer_for
from tests.micro_models import picture
from tests.train.configs import small_config

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def config(micro_sd, pairs_file, tmp_path):
    return small_config(micro_sd, pairs_file, tmp_path / "run", max_train_steps=4, train_batch_size=4, learning_rate=1e-3, lora_dropout=0.1)


def rows(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def signalled(monkeypatch, number, step):
    """Send this process a signal while a step is being taken."""
    gradients = Trainer._gradients

    def taking(self, batches):
        if self.step == step:
            os.kill(os.getpid(), number)
        return gradients(self, batches)

    monkeypatch.setattr(Trainer, "_gradients", taking)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_training_after_the_step_with_a_checkpoint_that_goes_on_to_the_same_bits(config, tmp_path, monkeypatch, number):
    whole = train(replace(config, output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        signalled(patch, number, 1)
        with pytest.raises(StoppedError, match=rf"{number.name} after step 2 of 4.*--resume_from_checkpoint") as stop:
            train(config)
    assert stop.value.status == 128 + number
    folder = tmp_path / "run"
    assert checkpoint.facts(folder / "checkpoint-2")["step"] == 2
    assert not (folder / LOCK).exists()
    assert train(replace(config, resume_from_checkpoint="latest")) == folder
    ours, expected = load_file(folder / WEIGHTS), load_file(whole / WEIGHTS)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert rows(folder) == rows(whole)


def test_a_checkpoint_and_pictures_are_made_at_once_on_request_and_the_result_stays_the_same(config, tmp_path, monkeypatch):
    whole = train(replace(config, output_dir=str(tmp_path / "whole")))
    gradients, drawn = Trainer._gradients, []
    monkeypatch.setattr(Trainer, "_validate", lambda self: drawn.append(self.step))

    def asking(self, batches):
        if self.step == 1:
            for request in (requests.SAVE, requests.SAMPLE):
                requests.ask(self.output_dir, request)
        return gradients(self, batches)

    monkeypatch.setattr(Trainer, "_gradients", asking)
    folder = train(config)
    assert checkpoint.find(folder, "latest").name == "checkpoint-2"
    assert drawn == [0, 2, 4]
    assert not list(folder.glob("*_now"))
    assert rows(folder) == rows(whole)


def test_a_checkpoint_of_an_adapter_is_a_run_that_draws_what_was_trained_by_then(config):
    folder = train(replace(config, checkpointing_steps=2, use_ema=True))
    middle, last, end = (Run.open(folder / name) for name in ("checkpoint-2", "checkpoint-4", "."))
    assert (middle.facts["steps"], last.facts["steps"], middle.base) == (2, 4, end.base)
    ours, expected = load_file(last.folder / WEIGHTS), load_file(end.folder / WEIGHTS)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    pipes = [load(run.folder) for run in (middle, end)]
    assert not np.array_equal(*(picture(pipe) for pipe in pipes))


def test_dropout_is_drawn_anew_at_every_step_and_alike_where_a_step_is_repeated(config):
    trainer, seeds = trainer_for(config), []
    for trainer.step in (0, 1, 0):
        trainer._seed_dropout()
        seeds.append(torch.initial_seed())
    assert seeds[0] == seeds[2] != seeds[1]


def test_the_handlers_of_the_process_are_back_after_training_and_a_second_signal_ends_at_once():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    seen = []
    thread = threading.Thread(target=lambda: seen.append(_listens()))
    thread.start()
    thread.join()
    assert seen == [True]


def _listens():
    with StopRequest().listening():
        return True


def test_a_checkpoint_that_cannot_be_written_warns_and_training_goes_on(config, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with caplog.at_level(logging.WARNING):
        folder = trainer_for(replace(config, checkpointing_steps=2)).fit()
    assert (folder / "run.json").exists()
    assert "step 2: the checkpoint could not be written" in caplog.text
    assert "MiB are free on the disk of" in caplog.text


def test_a_result_that_cannot_be_written_says_how_to_get_it(config, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    whole, once = replace(config, checkpointing_steps=1), save.write
    monkeypatch.setattr(save, "write", full)
    with pytest.raises(TrainingError, match=r"the training is done.*No space left.*MiB are free.*--resume_from_checkpoint latest"):
        train(whole)
    monkeypatch.setattr(save, "write", once)
    assert (train(replace(whole, resume_from_checkpoint="latest")) / "run.json").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, config, capsys):
    (tmp_path / "file").write_text("in its place")
    with pytest.raises(ConfigError, match=r"`output_dir`: .*file cannot be written"):
        train(replace(config, output_dir=str(tmp_path / "file")))
    assert main(["train", "--dataset_name", config.dataset_name, "--output_dir", ""]) == 2
    assert "`output_dir` is ''; expected the folder of the run" in capsys.readouterr().err


def test_a_folder_is_held_by_one_run_and_not_by_a_dead_one(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder), pytest.raises(ConfigError, match=rf"b is .*{os.getpid()}"), locked(folder):
        pass
    assert not (tmp_path / "a").exists()  # nothing was written
    folder.mkdir(parents=True)
    for left in ("", json.dumps(owner() | {"started": 0.0})):  # of a kill while it was written, and of a process that has died
        (folder / LOCK).write_text(left)
        with locked(folder):
            (folder / "result").touch()
        assert [path.name for path in folder.iterdir()] == ["result"]
    (folder / LOCK).write_text(json.dumps(owner() | {"host": "elsewhere"}))
    with pytest.raises(ConfigError, match=r"elsewhere.*\.lock"), locked(folder):
        pass


def test_a_second_run_in_one_folder_is_refused_while_the_first_one_trains(config, monkeypatch):
    refused = []
    gradients = Trainer._gradients

    def second(self, batches):
        if not refused:
            with pytest.raises(ConfigError, match="is being written by process") as refusal:
                train(replace(config, overwrite_output_dir=True))
            refused.append(refusal)
        return gradients(self, batches)

    monkeypatch.setattr(Trainer, "_gradients", second)
    folder = train(config)
    assert len(refused) == 1
    assert len(rows(folder)) == 4


def test_the_launchers_own_accumulation_divides_nothing(config, tmp_path, monkeypatch, caplog):
    plain = train(replace(config, output_dir=str(tmp_path / "plain")))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with caplog.at_level(logging.WARNING):
        folder = train(config)
    assert rows(folder) == rows(plain)
    assert "says gradient_accumulation_steps 4, and the config 1" in caplog.text


def test_rates_that_change_on_resume_count_and_are_said(config, caplog):
    folder = train(replace(config, checkpointing_steps=2))
    (folder / "run.json").unlink()
    later = replace(config, resume_from_checkpoint="checkpoint-2", learning_rate=5e-4, adam_weight_decay=0.5)
    (folder / "checkpoint-4").rename(folder / "moved")
    trainer = trainer_for(later)
    with caplog.at_level(logging.INFO):
        trainer.fit()
    assert [row["lr"] for row in rows(folder)] == [1e-3, 1e-3, 5e-4, 5e-4]
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert "learning_rate: 0.001 -> 0.0005 from step 2" in caplog.text
    assert "adam_weight_decay: 0.01 -> 0.5 from step 2" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_size": 2}, r"4 records a step, this run has 2 = 2 x 1 accumulated x 1 processes; .*--gradient_accumulation_steps 2"),
        ({"random_flip": True}, "random_flip False, this run has True; choose another output_dir"),
        ({"use_ema": True}, "use_ema False, this run has True"),
        ({"rank": 4}, "`rank` was 2, and this run has 4"),
        ({"train_method": "dora"}, "`train_method` was lora, and this run has dora"),
        ({"lora_layers": ["to_q"]}, "`lora_layers` was None"),
    ],
)
def test_what_cannot_change_on_resume_is_refused_with_its_cure(config, change, message):
    train(replace(config, checkpointing_steps=2, max_train_steps=2))
    with pytest.raises(CheckpointError, match=message):
        trainer_for(replace(config, resume_from_checkpoint="latest", **change)).fit()


def test_every_key_that_a_resume_may_change_is_refused_or_named(tmp_path):
    silent = {"pretrained_model_name_or_path", "user_encoder"}  # compared by what they lead to: see `identity`
    before = TrainConfig(dataset_name="votes")
    save_yaml(before, tmp_path / "config.yaml")
    for name, facts in facts_of(TrainConfig).items():
        if facts.changes in ("nothing", "data") or facts.resume or name in silent:
            continue
        value = getattr(before, name)
        other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v * 0.5 + 0.1}.get(type(value), lambda _: "other")(value)
        if name == "train_method":
            other = "full"
        later = replace(before, **{name: other})
        try:
            named = list(changes(tmp_path / "config.yaml", later))
        except CheckpointError as refusal:
            named = [str(refusal)]
        assert len(named) == 1, name
        assert name in named[0]


def test_a_rate_at_which_nothing_is_learned_is_named(config, caplog):
    with caplog.at_level(logging.WARNING):
        train(replace(config, learning_rate=1e-8, max_train_steps=1))
    assert "learning_rate 1e-08" in caplog.text
