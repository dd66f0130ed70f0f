"""People in the loop: a run waits for the votes of its pictures, and servers judge while more is drawn."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffalign.app.ballot import Ballot
from diffalign.app.limits import Pace
from diffalign.data.store import VoteStore
from diffalign.data.table import read_table
from diffalign.models.adapter_files import WEIGHTS
from diffalign.rewards.scorers import http, people
from diffalign.train import align as api
from diffalign.train.online import turns
from diffalign.train.online.drawing import PipelineDrawer
from diffalign.train.trainer import Trainer
from tests.killing import Killed, killing
from tests.train.online.scorers import online_config


class Voter(threading.Thread):
    """Somebody at the page of votes, who likes bright pictures and votes until `leave` is set."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.store, self.leave = VoteStore(path), threading.Event()
        self.ballot = Ballot(self.store, pace=Pace(10**6, 1.0))

    def run(self):
        while not self.leave.wait(0.01):
            for question in self.ballot.state("ada")["questions"][:1]:
                light = [np.asarray(Image.open(self.store.folder / name[:2] / name)).mean() for name in question["pictures"]]
                self.ballot.vote("ada", question["id"], "left" if light[0] > light[1] else "right")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.leave.set()
        self.join()
        self.store.close()


def config(model, folder, store, **changed):
    own = {"scorers": [{"people": {"path": str(store)}}], "num_inference_steps": 1, "max_train_steps": 3}
    return online_config(model, folder, **(own | changed))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(people, "POLL", 0.01)


def test_a_run_learns_from_votes_and_a_kill_loses_none_and_asks_none_twice(micro_sd, tmp_path, monkeypatch):
    whole = config(micro_sd, tmp_path / "whole", tmp_path / "whole.db")
    with Voter(tmp_path / "whole.db"):
        api.train(whole)
    record = read_table(tmp_path / "whole" / "data")[0]
    assert all(candidate.scores["people"] in (0.0, 0.5, 1.0) for candidate in record.candidates)
    killed = config(micro_sd, tmp_path / "killed", tmp_path / "killed.db")
    with Voter(tmp_path / "killed.db"):
        for name, survived in [("optimizer_step", 0), ("optimizer_step", 1)]:
            with monkeypatch.context() as patch:
                patch.setattr(Trainer, name, killing(getattr(Trainer, name), survived))
                with pytest.raises(Killed):
                    api.train(killed)
            killed = replace(killed, resume_from_checkpoint="latest")
        api.train(killed)
    one, two = (load_file(folder / WEIGHTS) for folder in (tmp_path / "whole", tmp_path / "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with VoteStore(tmp_path / "killed.db") as store:
        assert len(store.votes()) == store.pairs() == 2 * 2 * 3  # turns, prompts, and a ring of three pictures


def test_drawing_goes_on_while_a_server_judges_what_was_drawn(micro_sd, tmp_path, monkeypatch):
    events, drawn_more = [], threading.Event()
    monkeypatch.setattr(turns, "CHUNK", 3)  # a prompt's pictures at once

    def slow(url, body, timeout, key=None):
        first = not events.count("asked")
        events.append("asked")
        if first:
            assert drawn_more.wait(60.0)  # it answers only once the second prompt is drawn
        events.append("answered")
        return json.dumps({"scores": list(range(len(body["images"])))}).encode()

    def draw(self, prompts, *args):
        events.append("drawn")
        if events.count("drawn") == 2:
            drawn_more.set()
        return drawn(self, prompts, *args)

    drawn = PipelineDrawer.draw
    monkeypatch.setattr(http, "post", slow)
    monkeypatch.setattr(PipelineDrawer, "draw", draw)
    judge = {"http": {"url": "http://judge.invalid", "name": "slow"}}
    api.train(online_config(micro_sd, tmp_path / "run", scorers=[judge], num_inference_steps=1, max_train_steps=1))
    assert events.index("drawn", events.index("drawn") + 1) < events.index("answered")
    assert [c.scores["slow"] for record in read_table(tmp_path / "run" / "data") for c in record.candidates] == [0.0, 1.0, 2.0] * 2
