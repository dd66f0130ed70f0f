"""The page on which one votes: a widget of its own, whose script holds the next pictures ready."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import gradio as gr

from diffalign.app.ballot import Ballot
from diffalign.app.picture_route import serve_pictures
from diffalign.app.voters import AccessError, Accounts, login_of
from diffalign.core.errors import DiffalignError

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
Item = TypeVar("Item")


def vote_page(ballot: Ballot, accounts: Accounts, name: str, *, compact: bool = False) -> gr.HTML:
    """Return the widget; it belongs into a `gr.Blocks`. `name` tells it from other widgets of the same app.

    A `compact` one leaves room on the page and asks for no reasons.
    """
    served: WeakSet[Any] = WeakSet()  # servers that have the pictures' route; where this page is mounted into one, only a request names it

    def ask(request: gr.Request, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if request.app not in served:
            serve_pictures(request.app, name, ballot.store, accounts)
            served.add(request.app)
        return _answer(call)

    def state(data: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        return ask(request, lambda: ballot.state(accounts.voter(login_of(request), data.get("secret"))))

    def vote(data: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        def cast() -> dict[str, Any]:
            voter = accounts.voter(login_of(request), data.get("secret"))
            second = _text(data, "second_answer") if "second_answer" in data else ""
            reasons, ranks = _list(data, "reasons", str), _list(data, "ranks", int)
            return ballot.vote(voter, _text(data, "question"), _text(data, "answer"), reasons, ranks, second)

        return ask(request, cast)

    def undo(data: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        return ask(request, lambda: ballot.undo(accounts.voter(login_of(request), data.get("secret"))))

    html, css, script = ((HERE / f"vote.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    widget = gr.HTML(
        html_template=html,
        css_template=css,
        js_on_load=script,
        server_functions=[state, vote, undo],
        ballot=name,
        compact=str(compact).lower(),
        ranking=str(ballot.ranking).lower(),
    )
    widget.props["component"] = widget._id  # by which the script addresses the functions; Gradio tells it to nobody else
    return widget


def _answer(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `call` does, or its reason for refusing; what an error says of the server goes to the log and not to the page."""
    try:
        return call()
    except AccessError as error:
        return {"error": str(error)}
    except DiffalignError as error:  # its message names files of the server
        logger.warning("refused: %s", error)
        return {"error": "this answer does not fit its question; reload the page"}
    except Exception:  # whatever it is, a voter is not shown a traceback
        logger.exception("the vote page failed")
        return {"error": "something went wrong on the server; its log says what"}


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or len(value) > 64:
        raise AccessError(f"`{name}` is no short text")
    return value


def _list(data: dict[str, Any], name: str, kind: type[Item]) -> list[Item]:
    values = data.get(name, [])
    if not isinstance(values, list) or len(values) > 16 or not all(type(value) is kind for value in values):
        raise AccessError(f"`{name}` is no short list of {kind.__name__}")
    return values
