"""The app in a process of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tests.app.forks import forking
from tests.app.server import main
from tests.processes import PRELOADED, SERVER, start

SERVER.set_forkserver_preload([*PRELOADED, "gradio", "uvicorn"])  # seconds of every start


class Server:
    """A running app, which can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        ours, theirs = SERVER.Pipe(duplex=False)
        self.ends = ExitStack()
        forks = self.ends.enter_context(forking(self.folder.with_suffix(".forks.log")))
        with ours, theirs:
            self.process = start(self.folder.with_suffix(".log"), main, str(self.folder), self.port, theirs, forks)
            theirs.close()  # so that a process that ends without a word ends the waiting
            self.port = ours.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.ends.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"
