"""The page on which owners look through votes and tables, have them audited, and correct labels; what was there is kept."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from diffalign.app.commands import CLI, typed
from diffalign.app.ledger import Ledger
from diffalign.app.markup import picture_tag, without_folders
from diffalign.app.page_route import ADDRESS, serve_explanation
from diffalign.app.voters import AccessError
from diffalign.core.errors import DiffalignError, RecordError
from diffalign.data.browse import UNLABELLED, Entry, Filter
from diffalign.data.questions import ANSWERS, PROBABILITIES, RANKING
from diffalign.data.records import Candidate, Record

ROWS = 12  # of a sheet
SIDE = 200  # pixels of a picture on the sheet
TEXT = 300  # characters of a text on the sheet
REPORT = 20_000  # characters of an audit that are shown
REFRESH = 2.0  # seconds
ALL = "all"
REMOVE = "remove the label"
SIDES = ("left", "right")


@dataclass(frozen=True, slots=True)
class Finder:
    """The components that say which records to look at."""

    name: gr.Dropdown  # of the data
    sheet: gr.Number
    fields: Mapping[str, Component]  # by the field of `Filter` that they hold

    @property
    def inputs(self) -> set[Block]:
        """Return what an event reads."""
        return {self.name, self.sheet, *self.fields.values()}

    def chosen(self, values: Mapping[Component, Any]) -> tuple[str, int, Filter]:
        """Return the name of the data, the number of the sheet and what to look for, from the values that an event was given."""
        wanted = {field: values[component] for field, component in self.fields.items()}
        empty = {field: None for field, value in wanted.items() if value in (ALL, "")} | {"prompt": wanted["prompt"] or ""}
        return str(values[self.name] or ""), max(1, int(values[self.sheet] or 1)), Filter(**{**wanted, **empty})


def data_page(ledger: Ledger, tab: gr.Tab) -> None:
    """Add the page's components to the `gr.Blocks` around it; they show the newest records when `tab` is opened."""
    finder = _finder(ledger)
    with gr.Row():
        show = gr.Button("Show", variant="primary", min_width=80, elem_id="data-show")
        back = gr.Button("Sheet before", min_width=80, elem_id="data-back")
        onward = gr.Button("Next sheet", min_width=80, elem_id="data-onward")
        finder.sheet.render()
    css = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    shown = gr.HTML(css_template=css, js_on_load=None, elem_id="data-shown")
    with gr.Row():
        record = gr.Dropdown(label="Record", choices=[], elem_id="data-record")
        corrected = gr.Dropdown(label="Its label should be", choices=[*PROBABILITIES, REMOVE], value=REMOVE, elem_id="data-corrected")
        correct = gr.Button("Correct", elem_id="data-correct")
    outcome = gr.HTML(elem_id="data-outcome")

    def look(step: int) -> Callable[..., list[Any]]:
        def show_sheet(values: dict[Component, Any], request: gr.Request) -> list[Any]:
            name, number, wanted = finder.chosen(values)
            return _sheet(ledger, request.username, name, wanted, max(1, number + step))

        return show_sheet

    def change(values: dict[Component, Any], request: gr.Request) -> list[Any]:
        (name, number, wanted), label = finder.chosen(values), values[corrected]
        refusal = _refusal(lambda: ledger.correct(request.username, name, values[record] or "", None if label == REMOVE else label))
        message = refusal or "<p>Corrected; what was there is kept as history.</p>"
        return [message, *_sheet(ledger, request.username, name, wanted, number)]

    for event, step in ((tab.select, 0), (show.click, 0), (back.click, -1), (onward.click, 1), (finder.sheet.submit, 0)):
        event(look(step), finder.inputs, [finder.sheet, shown, record], concurrency_limit=None)
    correct.click(change, {record, corrected, *finder.inputs}, [outcome, finder.sheet, shown, record], concurrency_limit=None)
    _audit(ledger, finder.name)


def _finder(ledger: Ledger) -> Finder:
    """Add what chooses the records; the number of the sheet is not placed yet."""
    first = next(iter(ledger.stores))
    with gr.Row():
        name = gr.Dropdown(label="Data", choices=list(ledger.stores), value=first, allow_custom_value=True, elem_id="data-name")
        user = gr.Dropdown(label="User", choices=[ALL], value=ALL, allow_custom_value=True, elem_id="data-user")
        label = gr.Dropdown(label="Label", choices=[ALL, *ANSWERS, RANKING, UNLABELLED], value=ALL, elem_id="data-label")
    with gr.Accordion("More to find records by", open=False), gr.Row():
        prompt = gr.Textbox(label="Words in the prompt", max_length=200)
        model = gr.Textbox(label="Model", max_length=200)
        score = gr.Textbox(label="Score", max_length=200, placeholder="a name, as `inspect` lists them")
        low, high = (gr.Number(None, label=f"Score {limit}", min_width=90) for limit in ("from", "to"))
    sheet = gr.Number(1, label="Sheet", minimum=1, precision=0, min_width=80, elem_id="data-sheet", render=False)

    def names(request: gr.Request) -> Any:
        return gr.update(choices=_allowed(lambda: ledger.names(request.username), [first]))

    def users(name: str, request: gr.Request) -> Any:
        return gr.update(choices=[ALL, *_allowed(lambda: ledger.users(request.username, name), [])])

    name.focus(names, None, name, show_progress="hidden")
    user.focus(users, name, user, show_progress="hidden")
    fields = {"user": user, "label": label, "prompt": prompt, "model": model, "score": score, "low": low, "high": high}
    return Finder(name, sheet, fields)


def _audit(ledger: Ledger, name: gr.Dropdown) -> None:
    """Add what runs the commands of `diffalign data` and shows what they print."""
    gr.Markdown("What the command line says of these data:")
    with gr.Row():
        buttons = {
            "inspect": gr.Button("What it holds (inspect)", elem_id="data-inspect"),
            "validate": gr.Button("What would spoil training (validate)", elem_id="data-validate"),
            "explain": gr.Button("What the votes reward (explain)", elem_id="data-explain"),
            "correct": gr.Button("Write the corrected table", elem_id="data-write"),
        }
    report = gr.HTML(elem_id="data-report")
    served: WeakSet[Any] = WeakSet()  # servers that have the route of the explanation; only a request names them

    def start(kind: str) -> Callable[..., str]:
        def run(name: str, request: gr.Request) -> str:
            if request.app not in served:
                serve_explanation(request.app, ledger)
                served.add(request.app)
            return _refusal(lambda: ledger.start(request.username, name, kind)) or report_of(ledger)

        return run

    for kind, button in buttons.items():
        button.click(start(kind), name, report, concurrency_limit=None)

    def refresh(request: gr.Request) -> Any:
        if not ledger.accounts.is_owner(request.username) or not ledger.command.command:
            return gr.skip()
        return report_of(ledger)

    gr.Timer(REFRESH).tick(refresh, None, report, show_progress="hidden", concurrency_limit=None)


def report_of(ledger: Ledger) -> str:
    """Return what the last command printed, as HTML, with the command and, of `explain`, a link to the page that it wrote."""
    work = ledger.command
    text = ledger.report.read_text(encoding="utf-8", errors="replace")[:REPORT] if ledger.report.is_file() else ""
    state = f"<p>At work. {html.escape(work.last_line)}</p>" if work.busy else ""
    if not work.busy and not text:
        state = f"<p>{html.escape(without_folders(work.trouble or 'It printed nothing.'))}</p>"
    command = f"<p><code>{html.escape(typed(work.command))}</code></p>"
    if "explain" in work.command[: len(CLI) + 2] and not work.busy and not work.trouble and ledger.explanation.is_file():
        state += f'<p><a href="{ADDRESS}" target="_blank" rel="noopener">The page with the pictures that carry each finding</a></p>'
    return f"{state}<pre>{html.escape(without_folders(text))}</pre>{command}"


def _sheet(ledger: Ledger, login: str | None, name: str, wanted: Filter, number: int) -> list[Any]:
    """Return the number of a sheet, the sheet as HTML, and its records to choose from."""
    try:
        entries, total = ledger.sheet(login, name, wanted, number, ROWS)
        page = sheet_of(ledger, login, name, entries, (number - 1) * ROWS, total)
    except (DiffalignError, AccessError) as error:
        return [number, f"<p>{html.escape(without_folders(str(error)))}</p>", gr.update(choices=[], value=None)]
    labels = [(f"{place}: {entry.label.replace('_', ' ')}", entry.id) for place, entry in enumerate(entries, (number - 1) * ROWS + 1)]
    return [number, page, gr.update(choices=labels, value=labels[0][1] if labels else None)]


def sheet_of(ledger: Ledger, login: str | None, name: str, entries: Sequence[Entry], before: int, total: int) -> str:
    """Return records as HTML cards, the preferred picture of each in a frame; `before` of all stand on earlier sheets."""
    if not entries:
        return f"<p>{'No such records.' if not total else f'There are {total} records, and none on this sheet.'}</p>"
    rows, corrected = ledger.rows(login, name), ledger.corrected(login, name)
    cards = "".join(card(place, entry, rows.record(entry), corrected) for place, entry in enumerate(entries, before + 1))
    return f'<p>{before + 1} to {before + len(entries)} of {total} records.</p><div class="cards">{cards}</div>'


def card(place: int, entry: Entry, record: Record, corrected: Mapping[str, str | None]) -> str:
    """Return a record as HTML: its candidates in their order, the prompt, and what it is labelled."""
    label = corrected.get(entry.id, entry.label)
    shown = "".join(_candidate(candidate, side, side == label) for candidate, side in zip(record.candidates, _sides(record), strict=True))
    words = (entry.label.replace("_", " "), *([f"corrected to {label or 'nothing'}"] if entry.id in corrected else []))
    scores = [f"{side}: {name} {value:g}" for side, of in zip(_sides(record), entry.scores, strict=False) for name, value in of.items()]
    when = [time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry.at))] if entry.at else []
    lines = (", ".join(words), ", ".join([*([f"by {entry.user[:24]}"] if entry.user else []), *when]), ", ".join(scores))
    texts = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
    prompt = f"<p><b>{place}</b> {html.escape(entry.prompt[:TEXT])}</p>"
    return f'<article class="card">{prompt}<div class="candidates">{shown}</div>{texts}</article>'


def _sides(record: Record) -> tuple[str, ...]:
    count = len(record.candidates)
    return SIDES if count == 2 else tuple(f"number {place}" for place in range(1, count + 1))


def _candidate(candidate: Candidate, side: str, preferred: bool) -> str:
    alt = f"{side}: {candidate.model}" if candidate.model else side
    if candidate.image is None:
        frame = ' class="preferred"' if preferred else ""
        return f'<blockquote{frame} title="{html.escape(alt)}">{html.escape((candidate.text or "")[:TEXT])}</blockquote>'
    try:
        return picture_tag(candidate.image, side, alt, SIDE, framed=preferred)
    except RecordError:
        return f"<blockquote>{html.escape(alt)}: does not decode</blockquote>"


def _refusal(call: Callable[[], object]) -> str:
    """Return why a call was refused, as HTML; nothing where it was not."""
    try:
        call()
    except (DiffalignError, AccessError) as error:
        return f"<p>{html.escape(without_folders(str(error)))}</p>"
    return ""


def _allowed(call: Callable[[], list[str]], otherwise: list[str]) -> list[str]:
    """Return what a call returns, or something else where it is refused."""
    try:
        return call()
    except (DiffalignError, AccessError):
        return otherwise
