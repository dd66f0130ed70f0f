"""The app in somebody's own server, on any free port or a given one; sends the port once it answers.

In its folder there may be users.json, who may log in, and recipe.yaml, from which trainings start.

Every answer says in its header Server-Timing how many milliseconds it took here.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffalign.app import background, download, jobs, workshop
from diffalign.app.build import BYTES, at_work, build
from diffalign.app.limits import RequestLimits
from diffalign.app.options import AppConfig
from diffalign.app.voters import Accounts
from tests.app.forks import Forks


@dataclass(frozen=True, slots=True)
class Timed:
    """A server whose answers say how long they took."""

    server: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = f"app;dur={1000 * (time.perf_counter() - start):.2f}"
                message["headers"] = [*message["headers"], (b"server-timing", took.encode())]
            await send(message)

        await self.server(scope, receive, answer)


def main(folder: str, port: int, ready: Connection, forks: Connection) -> None:
    """Serve until killed; `ready` is sent the port, and commands are forked by the process at the other end of `forks`."""
    stand_in = Forks(forks)
    for module in (background, download, jobs, workshop):
        module.subprocess = stand_in
    users = Path(folder) / "users.json"
    personal, recipe = Path(folder) / "personal", Path(folder) / "recipe.yaml"
    config = AppConfig(
        dataset_name=f"{folder}/votes.db",
        output_dir=folder,
        auth=str(users) if users.exists() else None,
        personal=str(personal) if personal.exists() else None,
        ahead=0,
    )
    if recipe.exists():
        config = replace(config, config=str(recipe))
    options = Path(folder) / "options.json"
    if options.exists():
        config = replace(config, **json.loads(options.read_text()))
    login = Accounts.read(users).admits if users.exists() else None
    server = gr.mount_gradio_app(FastAPI(middleware=[Middleware(RequestLimits)]), build(config), path="/", auth=login, max_file_size=BYTES)
    pages = next(route for route in server.routes if isinstance(route, Mount))
    paths = [(method, route.path) for route in pages.routes if isinstance(route, Route) for method in route.methods or ()]
    server.router.routes.insert(0, Route("/test-routes", lambda _: JSONResponse(paths)))  # what the pages answer to, for tests
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # by which asyncio knows that small answers must not wait for more (TCP_NODELAY)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    ready.send(listener.getsockname()[1])
    ready.close()
    with at_work(config):
        uvicorn.Server(uvicorn.Config(Timed(server), log_level="error")).run(sockets=[listener])
