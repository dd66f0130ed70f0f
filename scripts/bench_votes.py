"""Many voters at once on the app: how long an answer takes, and whether a vote is lost or counted twice when the server is killed.

    python -m scripts.bench_votes --voters 50 --votes 4000

Voters are HTTP clients that call the functions of the vote page, as its script does: each looks at the two pictures of a question and
votes. In the middle the server is killed (SIGKILL) and started again; a vote without an answer is sent again, as the page does.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
from jsonargparse import auto_cli
from PIL import Image

from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore

SERVER = Path(__file__).resolve().parents[1] / "tests" / "app" / "server.py"
PATIENCE = 60.0  # seconds that a voter goes on asking a server that does not answer


@dataclass
class Bench:
    """The server, the times of its answers, and the votes that it confirmed."""

    folder: Path
    port: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"state": [], "picture": [], "vote": []})
    confirmed: list[str] = field(default_factory=list)
    repeated: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start the server, at the address of the one before."""
        root = {"PYTHONPATH": str(SERVER.parents[2])}
        command = [sys.executable, str(SERVER), str(self.folder), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | root)  # noqa: S603, our own script
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        page = requests.get(f"{self.address}/config", timeout=PATIENCE).json()
        self.component = next(part["id"] for part in page["components"] if part["props"].get("props") == {"ballot": "votes"})

    @property
    def address(self) -> str:
        """Return where the server is."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, session: requests.Session, name: str, data: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the vote page until it answers, and keep how long the answer took."""
        end = time.monotonic() + PATIENCE
        while True:
            start = time.perf_counter()
            try:
                body = {"component_id": self.component, "fn_name": name, "data": data, "session_hash": data["secret"]}
                answer = session.post(f"{self.address}/gradio_api/component_server", json=body, timeout=10)
                answer.raise_for_status()
                break
            except requests.RequestException:
                if time.monotonic() > end:
                    raise
                with self.lock:
                    self.repeated += 1
                time.sleep(0.2)
        self.seconds[name].append(time.perf_counter() - start)
        return answer.json()

    def voter(self, number: int, votes: int, think: float) -> None:
        """Vote so many times, looking for `think` seconds at each pair."""
        secret = f"{number:032x}"
        session = requests.Session()
        state = self.ask(session, "state", {"secret": secret})
        for _ in range(votes):
            if "error" in state or not state["questions"]:
                raise RuntimeError(f"voter {number}: {state.get('error', 'no question is left')}")
            question = state["questions"][0]["id"]
            for position in range(2):
                self.ask(session, "picture", {"secret": secret, "question": question, "position": position})
            time.sleep(think)
            state = self.ask(session, "vote", {"secret": secret, "question": question, "answer": "left", "reasons": []})
            with self.lock:
                self.confirmed.append(question)


def bench_votes(voters: int = 50, votes: int = 4000, pictures: int = 120, think: float = 0.5, kill: bool = True) -> None:
    """Print times, and votes lost and doubled.

    Args:
        voters: how many vote at once.
        votes: of all of them.
        pictures: of four prompts together, each 64 x 64 pixels.
        think: seconds that a voter looks at a pair.
        kill: kill the server in the middle, and start it again.
    """
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        noise = np.random.default_rng(0)
        with VoteStore(Path(name) / "votes.db") as store:
            for n in range(pictures):
                image = Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8))
                store.add_pictures(f"prompt {n % 4}", [encode_image(image)], model="noise", seeds=[n])
        bench.start()
        with concurrent.futures.ThreadPoolExecutor(voters) as pool:
            running = [pool.submit(bench.voter, number, votes // voters, think) for number in range(voters)]
            while kill and len(bench.confirmed) < votes // 2 and not all(one.done() for one in running):
                time.sleep(0.05)
            if kill:
                bench.process.kill()
                bench.process.wait()
                bench.start()
            for one in running:
                one.result()
        bench.process.kill()
        with VoteStore(Path(name) / "votes.db", read_only=True) as store:
            counted = [vote.question for vote in store.votes()]
    facts: dict[str, Any] = {"voters": voters, "confirmed": len(bench.confirmed), "counted": len(counted), "calls repeated": bench.repeated}
    facts |= {"lost": len(set(bench.confirmed) - set(counted)), "doubled": len(counted) - len(set(counted))}
    for call, seconds in bench.seconds.items():
        facts[f"{call} ms, median and 99 %"] = [round(1000 * float(np.quantile(seconds, q)), 1) for q in (0.5, 0.99)]
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    auto_cli(bench_votes)
