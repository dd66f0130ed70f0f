"""From votes to a file for other programs, all through the page in a real browser, on the embedded model."""

from __future__ import annotations

import re
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from diffalign.app.jobs import Queue
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from diffalign.models.backbones.folders import resolve
from tests.app.running import Server
from tests.app.test_vote_page import CHROMIUM, KEYS, Voter, browser  # noqa: F401  # a fixture
from tests.micro_models import picture, stock

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
RECIPE = "{pretrained_model_name_or_path: assets/tiny-sd, train_batch_size: 2, rank: 2, learning_rate: 1e-3, beta: 500}\n"
STEPS = 10
PATIENCE = 600_000  # milliseconds: a training imports its libraries first


@pytest.fixture
def server(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with VoteStore(tmp_path / "votes.db") as store:
        pictures = [encode_image(Image.new("RGB", (64, 64), (60 * n, 80, 200 - 60 * n))) for n in range(4)]  # six pairs
        store.add_pictures("a red star", pictures, model="tiny-sd", seeds=range(4))
    server = Server(tmp_path)
    yield server
    for job in Queue(tmp_path / "trainings").jobs():
        if job.alive:
            psutil.Process(job.pid).kill()
    server.kill()


class Owner(Voter):
    """Somebody at the page who also trains and compares."""

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def click(self, place: str) -> None:
        self.page.locator(f"#{place}").click()

    def reads(self, place: str, words: str) -> None:
        """Wait until a part of the page holds some words."""
        self.page.locator(f"#{place}", has_text=re.compile(words)).first.wait_for()

    def choose(self, place: str, option: str) -> None:
        """Choose in a dropdown."""
        self.page.locator(f"#{place} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()


def test_votes_become_a_model_that_is_compared_and_taken_away(browser, server, tmp_path):  # noqa: F811  # the fixture
    owner = Owner(browser, server, viewport={"width": 1440, "height": 1000})
    owner.page.set_default_timeout(PATIENCE)
    vote(owner)
    train(owner)
    compare(owner)
    download(owner, tmp_path)


def vote(owner: Owner) -> None:
    for answer in ("left", "right", "left", "left", "right", "left"):
        owner.means(answer)
        owner.page.keyboard.press(KEYS[answer])
    owner.sent()
    assert owner.counted() == owner.meant


def train(owner: Owner) -> None:
    """Start, watch the curve, stop at a checkpoint, resume, finish."""
    owner.tab("Train")
    owner.choose("train-voter", "my own")
    owner.page.locator("#train-steps input").fill(str(STEPS))
    owner.click("train-start")
    owner.reads("train-answer", "queue")
    queue = Queue(owner.server.folder / "trainings")
    until(lambda: len(queue.job("mine").log()) >= 2)
    process = psutil.Process(queue.job("mine").pid)
    process.suspend()  # so that it cannot be done before it is stopped
    owner.page.wait_for_selector("#train-curve-loss canvas, #train-curve-loss svg.marks")
    owner.reads("train-status", rf"runs.*of {STEPS}")
    owner.click("train-stop")
    owner.reads("train-answer", "stops")
    process.resume()
    owner.reads("train-status", "was stopped")
    owner.click("train-resume")
    owner.reads("train-status", rf"done.*Step {STEPS} of {STEPS}")
    owner.page.wait_for_selector("#train-pictures img")
    assert [line["step"] for line in queue.job("mine").log() if "loss" in line] == list(range(1, STEPS + 1))


def compare(owner: Owner) -> None:
    """Draw with the base and the training, vote blind, and look at the table."""
    owner.tab("Compare")
    owner.click("compare-fresh")
    for model in ("tiny-sd", "mine"):
        owner.page.locator("#compare-models").get_by_label(model, exact=True).check()
    owner.page.locator("#compare-prompts textarea").fill("a red star\na blue ring")
    owner.page.locator("#compare-pairs input").fill("2")
    owner.click("compare-draw")
    for _ in range(2):
        owner.page.locator(".vote[data-open]:visible .picture[data-answer=left]").click()
        owner.page.wait_for_timeout(300)  # milliseconds in which a pair takes no answer
    owner.reads("compare-status", r"mine.*\d\.\d\d")


def download(owner: Owner, folder: Path) -> None:
    """Take the training away, and load it as others do."""
    owner.tab("Strength and download")
    owner.choose("run-which", "mine")
    owner.click("run-download")
    with owner.page.expect_download() as taken:
        owner.page.locator("#run-file a[download]").first.click()
    with zipfile.ZipFile(taken.value.path()) as archive:
        archive.extractall(folder / "lora")
    base = Path(resolve("assets/tiny-sd"))
    pipe, before = stock(base), picture(stock(base))
    pipe.load_lora_weights(folder / "lora")
    assert np.abs(picture(pipe) - before).max() > 0.01


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)
