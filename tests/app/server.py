"""The app in somebody's own server, on any free port or a given one; prints the port once it answers."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from diffalign.app.build import BYTES, build
from diffalign.app.options import AppConfig
from diffalign.app.voters import Accounts


def main(folder: str, port: int) -> None:
    """Serve until killed."""
    users = Path(folder) / "users.json"
    config = AppConfig(dataset_name=f"{folder}/votes.db", output_dir=folder, auth=str(users) if users.exists() else None)
    login = Accounts.read(users).admits if users.exists() else None
    server = gr.mount_gradio_app(FastAPI(), build(config), path="/", auth=login, max_file_size=BYTES)
    listener = socket.create_server(("127.0.0.1", port))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(server, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
