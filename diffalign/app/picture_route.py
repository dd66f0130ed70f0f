"""The address under which the pictures of a vote store are files that a browser loads ahead and keeps."""

from __future__ import annotations

import mimetypes
import re

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from diffalign.app.voters import Accounts, login_of
from diffalign.data.store import VoteStore

PREFIX = "vote-pictures"
NAME = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")  # of a picture, by its content
KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}  # what a name stands for never changes


def serve_pictures(server: FastAPI, name: str, store: VoteStore, accounts: Accounts) -> None:
    """Add the route `/vote-pictures/NAME/FILE` to Gradio's server: the pictures of the store, to those who may log in.

    The name of a file is the hash of its content, which nobody guesses: who has it was shown the picture. No other file is reached.
    """

    def picture(request: Request) -> Response:
        file = request.path_params["file"]
        if not NAME.fullmatch(file) or (accounts.by_name and login_of(request) not in accounts.by_name):
            return Response(status_code=404)
        try:
            content = (store.folder / file[:2] / file).read_bytes()
        except FileNotFoundError:
            return Response(status_code=404)
        return Response(content, media_type=mimetypes.guess_type(file)[0] or "image/png", headers=KEPT)

    # Before Gradio's own routes, of which there are so many that to try them costs more than the picture.
    server.router.routes.insert(0, Route(f"/{PREFIX}/{name}/{{file}}", picture))
