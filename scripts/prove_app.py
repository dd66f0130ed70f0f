"""Sixty votes by a simulated taste, a training and a blind comparison, all through the app's pages: what do sixty votes change?

    python -m scripts.prove_app --output_dir outputs/prove_app

The voter is an HTTP client that does what a browser does: it loads the pictures of each question, looks at them, answers by its taste,
presses the buttons of the pages Train and Compare, and votes blind again, on held-out prompts. The win rate is the one that the page
shows; how often the pictures show what their prompts name is measured beside it, for votes may cost just that.
"""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
from jsonargparse import auto_cli
from PIL import Image

from diffalign.data.store import VoteStore
from diffalign.data.world.captions import random_caption
from diffalign.data.world.judge import mean_adherence
from diffalign.data.world.scenes import random_scene
from diffalign.data.world.tastes import User

ANSWERS = {1.0: "left", 0.0: "right", 0.5: "tie"}
BASE, NAME = "tiny-sd", "taught"
THINK = 0.2  # seconds between votes, which the app takes for a fast hand
PATIENCE = 3600.0  # seconds that anything may take


@dataclass(slots=True)
class Voter:
    """Somebody with a taste, in a browser of their own at the app's address."""

    address: str
    taste: User
    rng: np.random.Generator
    session: requests.Session = field(default_factory=requests.Session)
    secret: str = field(default_factory=lambda: uuid.uuid4().hex)
    tab: str = field(default_factory=lambda: uuid.uuid4().hex)
    prompts: set[str] = field(default_factory=set)  # of all questions so far

    def page(self) -> dict[str, Any]:
        """Return the page's components and what they call."""
        return self.session.get(f"{self.address}/config", timeout=60).json()

    def vote(self, ballot: str, votes: int) -> None:
        """Answer so many questions of a vote widget, waiting for pictures where there are none yet."""
        widget = next(part["id"] for part in self.page()["components"] if part["props"].get("props", {}).get("ballot") == ballot)
        state, end = self._call(widget, "state"), time.monotonic() + PATIENCE
        while votes:
            if "error" in state or time.monotonic() > end:
                raise RuntimeError(state.get("error", "no more questions came"))
            time.sleep(THINK)
            if not state["questions"]:
                state = self._call(widget, "state")
                continue
            question = state["questions"][0]
            self.prompts.add(question["prompt"])
            images = [self._picture(ballot, name) for name in question["pictures"]]
            answer = ANSWERS[self.taste.vote(*images, self.rng)]
            state = self._call(widget, "vote", question=question["id"], answer=answer, reasons=[])
            votes -= 1

    def press(self, part: str, *values: Any, trigger: str = "click") -> str:
        """Do what a part of the page triggers, and return all that the server answers."""
        page = self.page()
        ids = {one["id"]: one["props"].get("elem_id") for one in page["components"]}
        wanted = (one for one in page["dependencies"] if any(ids.get(at) == part and on == trigger for at, on in one["targets"]))
        return self._event(next(wanted)["id"], values)

    def tick(self, shown: str, *values: Any) -> str:
        """Return what the timer that refreshes a part of the page shows in it."""
        page = self.page()
        place = next(one["id"] for one in page["components"] if one["props"].get("elem_id") == shown)
        wanted = (one for one in page["dependencies"] if place in one["outputs"] and any(on == "tick" for _, on in one["targets"]))
        return self._event(next(wanted)["id"], values)

    def _picture(self, ballot: str, name: str) -> Image.Image:
        answer = self.session.get(f"{self.address}/vote-pictures/{ballot}/{name}", timeout=60)
        answer.raise_for_status()
        return Image.open(io.BytesIO(answer.content))

    def _call(self, widget: int, name: str, **data: Any) -> dict[str, Any]:
        body = {"component_id": widget, "fn_name": name, "data": {**data, "secret": self.secret}, "session_hash": self.tab}
        return self.session.post(f"{self.address}/gradio_api/component_server", json=body, timeout=60).json()

    def _event(self, number: int, values: tuple[Any, ...]) -> str:
        body = {"fn_index": number, "data": list(values), "session_hash": self.tab}
        self.session.post(f"{self.address}/gradio_api/queue/join", json=body, timeout=60).raise_for_status()
        text = ""
        with self.session.get(
            f"{self.address}/gradio_api/queue/data", params={"session_hash": self.tab}, stream=True, timeout=600
        ) as lines:
            for line in lines.iter_lines():
                text += line.decode()
                if b"process_completed" in line:
                    break
        return text


@contextmanager
def app(folder: Path) -> Iterator[str]:
    """Run the app for the block, and give its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = ["--dataset_name", str(folder / "votes.db"), "--output_dir", str(folder), "--server_port", str(port)]
    with (folder / "app.log").open("wb") as log:
        command = [sys.executable, "-m", "diffalign.cli", "app", *places]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603  # ours
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(address), "the app did not start")
        yield address
    finally:
        server.terminate()
        server.wait()


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until something is so; raise RuntimeError if it does not come to that."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(otherwise)
        time.sleep(1.0)


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/config", timeout=60).ok
    except requests.ConnectionError:
        return False


def _trained(voter: Voter) -> bool:
    """Return whether the page says that the training is done. Raises RuntimeError where it says that it failed."""
    status = voter.tick("train-status", NAME, "")
    if "wrote last" in status:
        raise RuntimeError(status)
    return "is done" in status


def held_out(seen: set[str], count: int, rng: np.random.Generator) -> list[str]:
    """Return captions of the embedded world that leave position and background open, and that nobody has voted on."""
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        caption = random_caption(random_scene(rng), rng, without=("position", "background"))
        if caption not in seen:
            prompts[caption] = None
    return list(prompts)


def adherences(store: Path, prompts: list[str]) -> dict[str, float]:
    """Return the share of attributes named in the prompts that each model's pictures show."""
    shares = {}
    with VoteStore(store, read_only=True) as arena:
        for model in (BASE, NAME):
            files = [next(iter(arena.pictures(prompt, model).values())) for prompt in prompts]
            shares[model] = round(mean_adherence(prompts, [Image.open(file) for file in files]), 3)
    return shares


def prove_app(output_dir: str = "outputs/prove_app", taste: str = "high", votes: int = 60, prompts: int = 100, seed: int = 0) -> None:
    """Print what the page Compare shows in the end, and the seconds of each part.

    Args:
        output_dir: new folder of the app.
        taste: what the voter likes, without error.
        votes: before the training.
        prompts: held-out prompts to compare on.
        seed: of the voter and the held-out prompts.
    """
    folder, seconds, begun = Path(output_dir), {}, time.perf_counter()
    folder.mkdir(parents=True)

    def done(part: str) -> None:
        seconds[part] = round(time.perf_counter() - begun - sum(seconds.values()), 1)
        print(f"{part}: {seconds[part]} s", flush=True)

    with app(folder) as address:
        done("start")
        rng = np.random.default_rng(seed)
        voter = Voter(address, User({taste: 1.0}), rng)
        voter.vote("votes", votes)
        done("vote")
        values = {one["props"].get("elem_id"): one["props"].get("value") for one in voter.page()["components"]}
        chosen = [values[f"train-{choice}"] for choice in ("method", "strength", "steps")]
        voter.press("train-start", "everyone", NAME, *chosen, voter.secret)
        until(lambda: _trained(voter), "the training did not end")
        done("train")
        asked = held_out(voter.prompts, prompts, rng)
        voter.press("compare-fresh")
        voter.press("compare-draw", [BASE, NAME], "\n".join(asked), prompts)
        voter.vote("arena", prompts)
        done("compare")
        table = voter.tick("compare-status")
    rate = re.search(rf"<td>{NAME}</td><td>([^<]*)</td><td>(\d+)</td><td>([^<]*)</td>", table)
    facts = {"taste": taste, "votes": votes, "method, strength, steps": chosen, "win rate against the base": rate and rate[1]}
    facts |= {"prompts": rate and int(rate[2]), "verdict": rate and rate[3], "adherence": adherences(folder / "arena.db", asked)}
    print(json.dumps(facts | {"seconds": seconds | {"total": round(time.perf_counter() - begun, 1)}}, indent=2))


if __name__ == "__main__":
    auto_cli(prove_app)
