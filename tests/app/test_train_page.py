"""What the train page turns choices into, and to whom it listens."""

from __future__ import annotations

import json
from dataclasses import replace

import gradio as gr
import pytest
from PIL import Image

from diffalign.app import workshop as workshop_module
from diffalign.app.jobs import Queue
from diffalign.app.options import AppConfig
from diffalign.app.pages.train import _pictures, _shown, _status
from diffalign.app.voters import AccessError, Account, Accounts
from diffalign.app.workshop import EVERYONE, METHODS, Workshop
from diffalign.cli.commands.train import CONFIG
from diffalign.cli.parser import parse
from diffalign.core.errors import ConfigError
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from diffalign.data.table import read_table
from diffalign.methods import METHODS as KNOWN
from tests.app.forks import Forks, forking


@pytest.fixture
def workshop(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pictures("a star", [encode_image(Image.new("L", (8, 8), shade)) for shade in range(0, 250, 50)])
        for user, answers in (("ada", ["left"] * 5 + ["tie"]), ("bob", ["right"] * 3)):
            for answer in answers:
                (question,) = store.questions(user)
                store.vote(question.id, user, answer)
        accounts = Accounts({"ada": Account("long enough", "owner"), "bob": Account("long enough", "voter")})
        yield Workshop(AppConfig(), store, Queue(tmp_path / "jobs"), accounts)


def test_choices_become_flags_that_train_takes_and_a_table_of_the_votes(workshop):
    job = workshop.start("ada", "mine", "ada", "diffusion_dpo", 5, 40)
    config = parse(CONFIG, job.flags, prog="diffalign train", epilog="")
    assert (config.method, config.beta, config.max_train_steps, config.checkpointing_steps) == ("diffusion_dpo", 15.0, 40, 4)
    assert config.resume_from_checkpoint == "latest"
    assert (config.validation_prompts, config.validation_steps) == (["a star"], 8)
    assert [(record.user, record.prob) for record in read_table(config.dataset_name)] == [("ada", 1.0)] * 5 + [("ada", 0.5)]
    everyone = workshop.start("ada", "ours", EVERYONE, "mapo", 3, 40)
    assert len(read_table(everyone.folder / "votes")) == 9
    assert set(METHODS) <= set(KNOWN)


def test_a_training_of_too_few_votes_or_for_a_voter_is_refused(workshop):
    for login, voter in (("ada", "bob"), ("bob", EVERYONE), (None, EVERYONE), ("eve", EVERYONE)):
        with pytest.raises(AccessError):
            workshop.start(login, "mine", voter, "diffusion_dpo", 3, 40)
    assert workshop.queue.jobs() == []


def test_choices_that_no_page_offers_are_refused(workshop):
    for choice in (("mine", EVERYONE, "rm -rf", 3, 40), ("mine", EVERYONE, "mapo", 9, 40), ("mine", EVERYONE, "mapo", 3, 0)):
        with pytest.raises(AccessError):
            workshop.start("ada", *choice)
    with pytest.raises(ConfigError):
        workshop.start("ada", "../../outside", EVERYONE, "mapo", 3, 40)


def test_only_owners_stop_resume_and_delete_and_deleting_takes_the_name(workshop, monkeypatch):
    workshop.start("ada", "mine", EVERYONE, "mapo", 3, 40)
    monkeypatch.setattr(Queue, "step", lambda queue: None)
    for deed in ("stop", "resume", "delete"):
        with pytest.raises(AccessError):
            workshop.act("bob", deed, "mine", "mine")
    with pytest.raises(AccessError):
        workshop.act("ada", "delete", "mine", "min")
    workshop.act("ada", "stop", "mine", "")
    assert workshop.queue.job("mine").state == "stopped"
    workshop.act("ada", "delete", "mine", "mine")
    assert workshop.queue.jobs() == []


def test_a_status_shows_the_alarm_and_the_command_and_neither_html_nor_folders_of_the_server(workshop):
    job = workshop.start("ada", "mine", EVERYONE, "mapo", 3, 40)
    job.run.mkdir()
    (job.run / "eval.jsonl").write_text(json.dumps({"step": 20, "alarm": ["<b>adherence</b> fell"]}) + "\n")
    shown = _status(workshop.queue.job("mine"))
    assert "step 20" in shown
    assert "--method mapo" in shown
    assert "<b>adherence" not in shown
    assert str(workshop.queue.folder) not in shown


def test_each_method_starts_from_its_recipe_and_strength_moves_every_beta_away_from_the_start(workshop):
    assert [workshop.beta("diffusion_dpo", strength) for strength in (1, 3, 5)] == [240.0, 60.0, 15.0]
    assert workshop.preset("inpo").file == "configs/tiny/votes_inpo.yaml"
    assert workshop.beta("mapo", 5) > workshop.beta("mapo", 3) > workshop.beta("mapo", 1)
    large = replace(workshop, config=AppConfig(config="configs/diffusion_dpo_sd15_lora.yaml"))
    assert large.preset("inpo").file == "configs/diffusion_dpo_sd15_lora.yaml"  # there is no InPO recipe with an adapter beside it
    assert large.preset("inpo").beta == 2000.0  # InPO's own, not that of the recipe for Diffusion-DPO


def test_the_memory_is_that_of_a_dry_run_and_shown_to_owners_alone(workshop, tmp_path, monkeypatch):
    with pytest.raises(AccessError):
        workshop.memory("bob", "mapo")
    with forking(tmp_path / "forks.log") as forks:
        monkeypatch.setattr(workshop_module, "subprocess", Forks(forks))
        about = workshop.memory("ada", "mapo")
        assert "method" in about
        assert "fit" in about.splitlines()[-1]
        assert workshop.memory("ada", "mapo") is about  # computed once


def test_validation_pictures_stand_by_prompt_and_step_and_nothing_is_sent_twice(workshop):
    job = workshop.start("ada", "mine", EVERYONE, "mapo", 3, 40)
    before = _shown(workshop, "ada", "mine", None)[0]
    (job.run / "validation").mkdir(parents=True)
    for step in (0, 8):
        Image.new("RGB", (66, 66)).save(job.run / "validation" / f"step-{step:06d}.png")
    shown = _pictures(workshop.queue.job("mine"))
    assert (shown.count("<img"), "a star" in shown, "step 8" in shown) == (2, True, True)
    now = _shown(workshop, "ada", "mine", before)
    assert now[0] != before
    assert all(value == gr.skip() for value in _shown(workshop, "ada", "mine", now[0]))
    assert _shown(workshop, "bob", "mine", None)[1]["choices"] == []


def test_a_failed_training_says_how_it_ended(workshop):
    job = workshop.start("ada", "mine", EVERYONE, "mapo", 3, 40)
    for status, words in ((-9, "SIGKILL"), (1, "error"), (None, "nobody")):
        replace(job, pid=1, status=status).save()
        assert words in _status(workshop.queue.job("mine"))
