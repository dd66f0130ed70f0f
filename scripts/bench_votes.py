"""Many voters at once on the app: how long an answer takes, and whether a vote is lost or counted twice when the server is killed.

    python -m scripts.bench_votes --voters 50 --votes 4000 --training true

Voters are HTTP clients that do what the page's script does: they load the pictures of the next questions ahead, each once, look at a
pair and vote. In the middle the server is killed (SIGKILL) and started again; a vote without an answer is sent again. The clients
share the machine's cores with the server, so that the server's own times, from its header Server-Timing, stand beside those of the clients.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from jsonargparse import auto_cli
from PIL import Image

from diffalign.app.jobs import NICE
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from tests.app.running import Server

PATIENCE = 60.0  # seconds that a voter goes on asking a server that does not answer
TRAINING = ("-m", "diffalign.cli", "train", "--config", "configs/tiny/diffusion_dpo.yaml", "--max_train_steps", "1000000")
CALLS = ("state", "picture", "vote")


@dataclass
class Bench:
    """The server, the milliseconds of its answers (as the client and as the server saw them), and the votes that it confirmed."""

    server: Server
    times: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {call: [] for call in CALLS})
    confirmed: list[str] = field(default_factory=list)
    repeated: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the server, which stays open."""
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)

    def component(self) -> int:
        """Return the number of the vote page's widget."""
        connection = self.connect()
        connection.request("GET", "/config")
        page = json.load(connection.getresponse())
        return next(part["id"] for part in page["components"] if part["props"].get("props", {}).get("ballot") == "votes")

    def ask(self, connection: http.client.HTTPConnection, call: str, method: str, path: str, body: str | None = None) -> bytes:
        """Send a request until it is answered, and keep how long the answer took."""
        end = time.monotonic() + PATIENCE
        while True:
            start = time.perf_counter()
            try:
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                if time.monotonic() > end:
                    raise
                with self.lock:
                    self.repeated += 1
                time.sleep(0.2)
        if answer.status != 200:
            raise RuntimeError(f"{path}: status {answer.status}")
        took = 1000 * (time.perf_counter() - start)
        self.times[call].append((took, float(answer.getheader("server-timing", "").rpartition("=")[2])))
        return content


@dataclass
class Voter:
    """One of those who vote, with the pictures that the browser has."""

    bench: Bench
    number: int
    component: int
    pictures: set[str] = field(default_factory=set)

    def vote(self, votes: int, think: float) -> None:
        """Vote so many times, looking for `think` seconds at each pair, a little more or less."""
        connection, rng = self.bench.connect(), np.random.default_rng(self.number)
        time.sleep(think * rng.random())
        state = self._call(connection, "state", {})
        for _ in range(votes):
            if "error" in state or not state["questions"]:
                raise RuntimeError(f"voter {self.number}: {state.get('error', 'no question is left')}")
            for name in (name for question in state["questions"] for name in question["pictures"] if name not in self.pictures):
                self.bench.ask(connection, "picture", "GET", f"/vote-pictures/votes/{name}")
                self.pictures.add(name)
            time.sleep(think * (0.5 + rng.random()))
            question = state["questions"][0]["id"]
            state = self._call(connection, "vote", {"question": question, "answer": "left", "reasons": []})
            with self.bench.lock:
                self.bench.confirmed.append(question)

    def _call(self, connection: http.client.HTTPConnection, name: str, data: dict[str, Any]) -> dict[str, Any]:
        secret = f"{self.number:032x}"
        body = {"component_id": self.component, "fn_name": name, "data": data | {"secret": secret}, "session_hash": "votes"}
        return json.loads(self.bench.ask(connection, name, "POST", "/gradio_api/component_server", json.dumps(body)))


def bench_votes(
    voters: int = 50, votes: int = 4000, prompts: int = 40, think: float = 1.0, kill: bool = True, training: bool = False
) -> None:
    """Print times, and votes lost and doubled.

    Args:
        voters: how many vote at once.
        votes: of all of them.
        prompts: each with six pictures of 64 x 64 pixels, as the embedded model draws them.
        think: seconds that a voter looks at a pair, on average.
        kill: kill the server in the middle, and start it again.
        training: train the embedded model meanwhile, as the app does.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _fill(folder / "votes.db", prompts)
        trains = [_train(folder)] if training else []
        bench = Bench(Server(folder))
        component, start, cpu = bench.component(), time.monotonic(), 0.0
        with concurrent.futures.ThreadPoolExecutor(voters) as pool:
            running = [pool.submit(Voter(bench, number, component).vote, votes // voters, think) for number in range(voters)]
            while kill and len(bench.confirmed) < votes // 2 and not all(one.done() for one in running):
                time.sleep(0.05)
            if kill:
                cpu += _cpu(bench.server)
                bench.server.kill()
                bench.server.start()
            for one in running:
                one.result()
        seconds, cpu = time.monotonic() - start, cpu + _cpu(bench.server)
        bench.server.kill()
        _end(trains)
        with VoteStore(folder / "votes.db", read_only=True) as store:
            counted = [vote.question for vote in store.votes()]
    facts = {
        "votes a second": round(len(counted) / seconds, 1),
        "server's CPU ms a vote, with its start": round(1000 * cpu / len(counted), 1),
    }
    print(json.dumps({"voters": voters, **_counts(bench, counted), **facts, **_latencies(bench)}, indent=2))


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _counts(bench: Bench, counted: Sequence[str]) -> dict[str, int]:
    """Return how many votes were confirmed and counted, and how many were lost and doubled."""
    lost, doubled = len(set(bench.confirmed) - set(counted)), len(counted) - len(set(counted))
    return {"confirmed": len(bench.confirmed), "counted": len(counted), "calls repeated": bench.repeated, "lost": lost, "doubled": doubled}


def _latencies(bench: Bench) -> dict[str, list[float]]:
    """Return the median and the 99 % quantile, in ms, of each kind of call at both sides."""
    facts = {}
    for call, times in bench.times.items():
        for side, took in zip(("client", "server"), np.array(times).T, strict=True):
            facts[f"{call} ms at the {side}, median and 99 %"] = [round(float(np.quantile(took, q)), 1) for q in (0.5, 0.99)]
    return facts


def _fill(path: Path, prompts: int) -> None:
    noise = np.random.default_rng(0)
    with VoteStore(path) as store:
        for n in range(prompts):
            images = [Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]
            store.add_pictures(f"prompt {n}", [encode_image(image) for image in images], model="noise", seeds=range(6))


def _train(folder: Path) -> subprocess.Popen[bytes]:
    """Start a training on votes, and return once it takes steps."""
    votes = folder / "earlier.db"
    _fill(votes, 20)
    with VoteStore(votes) as store:
        for question in store.questions("ada", 100):
            store.vote(question.id, "ada", "left")
    command = [sys.executable, *TRAINING, "--dataset_name", str(votes), "--output_dir", str(folder / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)  # noqa: S603, a list of our own making
    psutil.Process(process.pid).nice(NICE)
    while not (folder / "run" / "train_log.jsonl").exists():
        if process.poll() is not None:
            raise RuntimeError("the training ended")
        time.sleep(0.5)
    return process


def _cpu(server: Server) -> float:
    """Return the seconds of CPU that a server has used."""
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    auto_cli(bench_votes)
