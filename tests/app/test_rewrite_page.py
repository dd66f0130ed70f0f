"""The Rewrite page: who may draw, what the process behind it answers, and what of it is shown."""

from __future__ import annotations

import io
import sys

import pytest
from PIL import Image

from diffalign.app.options import AppConfig
from diffalign.app.pages.rewrite import LAST_SEED, LONGEST_PROMPT, Desk, versions_shown
from diffalign.app.voters import AccessError, Account, Accounts
from diffalign.app.writer import DrawnVersion, WriterProcess
from diffalign.core.errors import CheckpointError, ConfigError

# What `diffalign rewrite --follow` does, without models: it answers each line with one, and says how many it has answered.
WRITER = """
import json, pathlib, sys
print("a library prints, too")
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    if request["prompt"] == "die":
        sys.exit("diffalign: error: out of memory")
    if request["prompt"] == "refuse":
        print(json.dumps({"error": "no such words"}), flush=True)
        continue
    file = pathlib.Path(sys.argv[1]) / "picture.png"
    file.write_bytes(f"{number} {request['seed']}".encode())
    print(json.dumps({name: {"texts": [request["prompt"]], "images": [str(file)]} for name in ("prompt", "base", "trained")}), flush=True)
"""


@pytest.fixture
def writers(tmp_path):
    process = WriterProcess([str(tmp_path)], tmp_path / "log.txt", [sys.executable, "-c", WRITER])
    yield process
    process.close()


def test_models_stay_loaded_between_prompts(writers):
    assert writers.versions("a star", 7)["trained"] == DrawnVersion(("a star",), (b"0 7",))
    assert writers.versions("ein Stern ☆", 8)["base"] == DrawnVersion(("ein Stern ☆",), (b"1 8",))


def test_a_prompt_that_is_refused_says_why_and_the_process_goes_on(writers):
    with pytest.raises(ConfigError, match="no such words"):
        writers.versions("refuse", 0)
    assert writers.versions("a star", 0)["prompt"].images == (b"1 0",)


def test_a_process_that_died_says_its_last_words_and_the_next_prompt_starts_another(writers):
    with pytest.raises(CheckpointError, match="out of memory"):
        writers.versions("die", 0)
    assert writers.versions("a star", 0)["prompt"].images == (b"0 0",)
    writers.close()
    assert writers.versions("a star", 0)["prompt"].images == (b"0 0",)


def test_a_process_that_nobody_asks_ends(writers, monkeypatch):
    monkeypatch.setattr("diffalign.app.writer.IDLE_SECONDS", 0.0)
    writers.versions("a star", 0)
    process = writers._process
    assert process is None or process.wait(60) is not None


def test_only_owners_draw_and_only_short_prompts(writers):
    accounts = Accounts({"ada": Account("long enough", "owner"), "bob": Account("long enough", "voter")})
    desk = Desk(AppConfig(), writers, accounts)
    for login, prompt, seed in (("bob", "a star", 0), (None, "a star", 0), ("ada", " ", 0), ("ada", "a" * (LONGEST_PROMPT + 1), 0)):
        with pytest.raises(AccessError):
            desk.versions(login, prompt, seed)
    for seed in (-1, LAST_SEED + 1):
        with pytest.raises(AccessError):
            desk.versions("ada", "a star", seed)
    assert writers._process is None


def test_a_writer_that_is_no_run_of_a_language_model_is_refused_at_the_start(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Desk.of(AppConfig(writer=str(tmp_path)), tmp_path, Accounts())


def test_what_a_writer_added_is_marked_and_nothing_is_taken_as_html():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    texts = {"prompt": "a <b>star</b>", "base": "A star, <i>blue</i>", "trained": "a star"}
    shown = versions_shown({name: DrawnVersion((text,), (file.getvalue(),)) for name, text in texts.items()})
    assert "<b>star" not in shown
    assert "A star, &lt;<mark>i</mark>&gt;<mark>blue</mark>&lt;" in shown
    assert shown.count("<img") == 3
