"""The page on which owners look through the votes and correct them; what a voter answered is kept as history."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from diffalign.app.voters import AccessError, Accounts
from diffalign.core.errors import DiffalignError
from diffalign.data.pictures import decode_image
from diffalign.data.questions import ANSWERS, CastVote, Question
from diffalign.data.store import VoteStore

ROWS = 12  # of a sheet
SIDE = 160  # pixels of a picture on the sheet
ALL = "all"
REMOVE = "remove the label"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the page does: finds votes, and corrects them."""

    store: VoteStore
    accounts: Accounts

    def votes(self, login: str | None, user: str, answer: str) -> list[CastVote]:
        """Return the votes that count, of a user and with an answer, or all; the newest first. Raises AccessError unless an owner asks."""
        self._owner(login)
        votes = self.store.votes(None if user == ALL else user)
        return [vote for vote in reversed(votes) if answer in (ALL, vote.answer)]

    def correct(self, login: str | None, question: str, answer: str) -> None:
        """Put another answer in the place of a vote, or none. Raises AccessError unless an owner asks, RecordError for no such vote."""
        self._owner(login)
        self.store.correct(question, login or "owner", None if answer == REMOVE else answer)

    def _owner(self, login: str | None) -> None:
        if not self.accounts.is_owner(login):
            raise AccessError("only owners see and correct the votes of others")


def votes_page(ledger: Ledger) -> None:
    """Add the page's components to the `gr.Blocks` around it."""
    with gr.Row():
        user = gr.Dropdown(label="Votes of", choices=[ALL], value=ALL, elem_id="votes-user")
        answer = gr.Dropdown(label="Answer", choices=[ALL, *ANSWERS, "ranking"], value=ALL, elem_id="votes-answer")
        sheet = gr.Number(label="Sheet", value=1, minimum=1, precision=0, elem_id="votes-sheet")
        show = gr.Button("Show", variant="primary", elem_id="votes-show")
    table = gr.HTML(elem_id="votes-table")
    with gr.Row():
        vote = gr.Dropdown(label="Vote", choices=[], elem_id="votes-which")
        corrected = gr.Dropdown(label="Its answer should be", choices=[*ANSWERS, REMOVE], value=REMOVE, elem_id="votes-corrected")
        correct = gr.Button("Correct", elem_id="votes-correct")
    outcome = gr.Markdown(elem_id="votes-outcome")

    def look(user: str, answer: str, sheet: int, request: gr.Request) -> list[Any]:
        try:
            votes = ledger.votes(request.username, user, answer)
        except (DiffalignError, AccessError) as error:
            return [html.escape(str(error)), gr.update(choices=[], value=None)]
        page = votes[(int(sheet) - 1) * ROWS :][:ROWS]
        labels = [(f"{number}: {cast.answer}", cast.question) for number, cast in enumerate(page, start=1)]
        return [sheet_of(ledger.store, page, len(votes)), gr.update(choices=labels, value=labels[0][1] if labels else None)]

    def change(question: str | None, answer: str, request: gr.Request) -> str:
        try:
            ledger.correct(request.username, question or "", answer)
        except AccessError as error:
            return str(error)
        except DiffalignError:
            return "There is no such vote; show the sheet again."
        return "Corrected; the voter's own answer is kept as history. Show the sheet again to see it."

    def users(request: gr.Request) -> Any:
        return gr.update(choices=[ALL, *ledger.store.users()] if ledger.accounts.is_owner(request.username) else [ALL])

    show.click(look, [user, answer, sheet], [table, vote], concurrency_limit=None)
    correct.click(change, [vote, corrected], outcome, concurrency_limit=None)
    user.focus(users, None, user, show_progress="hidden")


def sheet_of(store: VoteStore, votes: Sequence[CastVote], total: int) -> str:
    """Return votes as an HTML table with small pictures, the preferred one in a frame."""
    if not votes:
        return "<p>No such votes.</p>"
    rows = "".join(_row(number, store.question(vote.question), vote) for number, vote in enumerate(votes, start=1))
    head = "<tr><th></th><th>Left</th><th>Right</th><th>Prompt</th><th>Answer</th><th>By</th></tr>"
    return f"<p>{total} votes.</p><table>{head}{rows}</table>"


def _row(number: int, question: Question, vote: CastVote) -> str:
    pictures = []
    for side, picture in zip(("left", "right"), question.pictures, strict=False):
        small = io.BytesIO()
        image = decode_image(picture.file.read_bytes(), picture.file.name, least=(SIDE, SIDE))
        image.thumbnail((SIDE, SIDE))
        image.save(small, "WEBP")
        frame = "outline: 3px solid var(--color-accent)" if vote.answer == side else ""
        data = base64.b64encode(small.getvalue()).decode()
        alt = html.escape(f"{side}: {picture.model}")
        pictures.append(f'<td><img src="data:image/webp;base64,{data}" alt="{alt}" title="{alt}" style="{frame}"></td>')
    why = f" ({', '.join(vote.reasons)})" if vote.reasons else ""
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(vote.at))
    texts = (question.prompt, vote.answer.replace("_", " ") + why, f"{question.user[:24]}, {when} UTC")
    return f"<tr><td>{number}</td>{''.join(pictures)}{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
