"""The app in somebody's own server, on any free port or a given one; prints the port once it answers."""

from __future__ import annotations

import socket
import sys

import gradio as gr
import uvicorn
from fastapi import FastAPI

from diffalign.app.build import build
from diffalign.app.options import AppConfig


def main(folder: str, port: int) -> None:
    """Serve until killed."""
    server = gr.mount_gradio_app(FastAPI(), build(AppConfig(dataset_name=f"{folder}/votes.db", output_dir=folder)), path="/")
    listener = socket.create_server(("127.0.0.1", port))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(server, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
