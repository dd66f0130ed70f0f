"""What the app costs while nobody is there: CPU of all its processes with nothing to do, and memory before and after sessions.

    python -m scripts.bench_app --seconds 60 --sessions 200

A session is what a browser does over HTTP: it loads the page and its config, asks for its next questions with their pictures, lets every
timer of the page tick, and is closed. All of them are one guest, so that they leave the pool of pairs as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import requests
from jsonargparse import auto_cli

from diffalign.data.store import VoteStore

MB = 2**20
PATIENCE = 600.0  # seconds until the first pictures are drawn
QUIET = 5.0  # seconds after which whatever had ended has been cleaned up


def bench_app(port: int = 7861, seconds: float = 60.0, sessions: int = 200, ahead: int = 24) -> None:
    """Print the share of a core that the app takes while idle, and the memory of its server before and after.

    Args:
        port: that the app listens on.
        seconds: over which CPU is measured.
        sessions: opened and left.
        ahead: pairs that the app draws ahead, before anything is measured.
    """
    with tempfile.TemporaryDirectory() as name:
        votes = Path(name) / "votes.db"
        command = [sys.executable, "-m", "diffalign.cli", "app", "--dataset_name", str(votes), "--output_dir", name]
        app = subprocess.Popen([*command, "--server_port", str(port), "--ahead", str(ahead)])  # noqa: S603, a list of our own making
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(lambda: votes.exists() and requests.get(f"{address}/config", timeout=10).ok)
            _session(address)  # what only the first one loads is not counted
            with VoteStore(votes, read_only=True) as store:
                _wait(lambda: store.unseen() >= ahead)
            time.sleep(QUIET)
            facts = {
                "idle, share of a core": _idle(app.pid, seconds),
                "processes": 1 + len(psutil.Process(app.pid).children(recursive=True)),
            }
            before = psutil.Process(app.pid).memory_info().rss
            for _ in range(sessions):
                _session(address)
            time.sleep(QUIET)
            after = psutil.Process(app.pid).memory_info().rss
            facts |= {"sessions": sessions, "server MB before": round(before / MB), "server MB after": round(after / MB)}
            facts["idle after them, share of a core"] = _idle(app.pid, seconds)
        finally:
            app.terminate()
            app.wait()
    print(json.dumps(facts, indent=2))


def _wait(ready: Any) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if ready():
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the app was not ready in {PATIENCE:g} seconds")


def _idle(pid: int, seconds: float) -> float:
    """Return which share of a core a process and all those that it started take."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    before = sum(sum(process.cpu_times()[:2]) for process in family)
    time.sleep(seconds)
    return round((sum(sum(process.cpu_times()[:2]) for process in family) - before) / seconds, 4)


def _session(address: str) -> None:
    """Open the page, use what it uses by itself, and leave."""
    with requests.Session() as browser:
        browser.get(f"{address}/", timeout=30)
        page = browser.get(f"{address}/config", timeout=30).json()
        name = uuid.uuid4().hex[:11]
        heart = browser.get(f"{address}/gradio_api/heartbeat/{name}", stream=True, timeout=30)
        for ballot in (part for part in page["components"] if "ballot" in (part["props"].get("props") or {})):
            body = {"component_id": ballot["id"], "fn_name": "state", "data": {"secret": "0" * 32}, "session_hash": "votes"}
            state = browser.post(f"{address}/gradio_api/component_server", json=body, timeout=30).json()
            for file in (file for question in state["questions"] for file in question["pictures"]):
                browser.get(f"{address}/vote-pictures/{ballot['props']['props']['ballot']}/{file}", timeout=30).raise_for_status()
        for event in page["dependencies"]:
            if any(kind in ("load", "tick") for _, kind in event["targets"]) and event["backend_fn"]:
                _tick(browser, address, name, event)
        heart.close()


def _tick(browser: requests.Session, address: str, name: str, event: dict[str, Any]) -> None:
    body = {"fn_index": event["id"], "data": [None] * len(event["inputs"]), "session_hash": name}
    browser.post(f"{address}/gradio_api/queue/join", json=body, timeout=30)
    with browser.get(f"{address}/gradio_api/queue/data", params={"session_hash": name}, stream=True, timeout=30) as answer:
        for line in answer.iter_lines():
            if b"process_completed" in line or b"close_stream" in line:
                return


if __name__ == "__main__":
    auto_cli(bench_app)
