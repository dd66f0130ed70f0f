"""The address of the page that `diffalign data explain` wrote, for owners."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from diffalign.app.ledger import Ledger
from diffalign.app.voters import login_of

ADDRESS = "explanation"


def serve_explanation(server: FastAPI, ledger: Ledger) -> None:
    """Add the route `/explanation` to Gradio's server: the page of the last `explain`, to owners alone. No other file is reached."""

    def page(request: Request) -> Response:
        if not ledger.accounts.is_owner(login_of(request)) or not ledger.explanation.is_file():
            return Response(status_code=404)
        return HTMLResponse(ledger.explanation.read_bytes(), headers={"Cache-Control": "no-store"})

    server.router.routes.insert(0, Route(f"/{ADDRESS}", page))
