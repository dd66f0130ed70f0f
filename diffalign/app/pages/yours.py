"""The page Yours: a few choices between pictures, and after each of them pictures in this taste beside nobody's."""

from __future__ import annotations

import html
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from diffalign.app.ballot import Ballot
from diffalign.app.commands import CLI, typed
from diffalign.app.markup import picture_tag, without_folders
from diffalign.app.pages.vote import vote_page
from diffalign.app.studio import Studio
from diffalign.app.voters import AccessError, Accounts, login_of
from diffalign.core.errors import DiffalignError
from diffalign.data.pictures import encode_image

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.infer.users.pipeline import UserPipeline

logger = logging.getLogger(__name__)
FEW, MANY = 4, 12  # choices that tell enough to begin with, and after which further ones tell little
PROMPTS, LONGEST = 6, 300  # that are drawn for a taste, and letters of one
SIDE = 384  # pixels of a picture at most
WHOSE = ("for you", "for nobody")
AHEAD = 2  # pairs that the page holds: each is chosen while one looks at the one before
FILE = "taste.safetensors"
HOW_TO_TRAIN = """This page draws for one person, with a personalised run on this model, and none was named. Train one on the votes of
several people, and open the app with it:

```
diffalign train --config configs/ppd_sd15.yaml --dataset_name votes.db --output_dir outputs/ppd
diffalign app --personal outputs/ppd
```"""
STYLE = (Path(__file__).parent / "yours.css").read_text(encoding="utf-8")
WIDGET = "yours-choices"
REFRESH = f"() => document.querySelector('#{WIDGET} .vote')?.dispatchEvent(new Event('refresh'))"


@dataclass(frozen=True, slots=True)
class Look:
    """Whom the page draws for: a visitor, or a taste from a file, mixed with a second person and with nobody."""

    voter: str | None = None
    mine: Tensor | None = None  # (U, D)
    from_file: bool = False
    other: Tensor | None = None  # of the second person
    to_other: float = 0.0  # share of the way from mine to the second person
    strength: float = 1.0  # share of the way from nobody

    def person(self, studio: Studio) -> UserPipeline | None:
        """Return whose pictures are drawn, None for nobody's."""
        if self.mine is None:
            return None
        person = studio.personal.for_user(self.mine)
        if self.other is not None:
            person = person.mixed(studio.personal.for_user(self.other), self.to_other)
        return person.mixed(None, 1.0 - self.strength)


@dataclass(frozen=True, slots=True)
class Sitting:
    """What the page does. Methods return the page's news: status, pictures, file to save, look, slider to a second person, commands."""

    studio: Studio
    accounts: Accounts

    def chosen(
        self, event: gr.EventData, look: Look, prompts: str, strength: float, to_other: float, request: gr.Request
    ) -> Iterator[list[Any]]:
        """Draw for the visitor whose choices have changed; the first one waits for the run, and for the pictures to choose from."""
        try:
            if not isinstance(event._data, dict):
                raise AccessError("only the page itself asks for this")
            voter = self.accounts.voter(login_of(request), event._data.get("secret"))
            for there, total in self.studio.prepare():
                yield _message(f"Drawing the first pictures: {there} of {total}.")
            look = replace(look, voter=voter, mine=self.studio.taste(voter), from_file=False)
            yield self.drawn(look, prompts, strength, to_other)
        except (AccessError, DiffalignError, OSError) as error:
            yield _refused(error)

    def drawn(self, look: Look, prompts: str, strength: float, to_other: float) -> list[Any]:
        """Draw for a look, and for nobody at the same seeds."""
        if look.voter is None and look.mine is None:
            return _message("The page is not ready yet.")
        lines = [line.strip()[:LONGEST] for line in prompts.splitlines() if line.strip()][:PROMPTS]
        if not lines:
            return _message("Write a prompt to look at.")
        look = replace(look, strength=strength, to_other=to_other)
        try:
            nobodys = self.studio.nobodys(lines)
            person = look.person(self.studio)
            images = nobodys if person is None else self.studio.pictures(person, lines)
            status = f"<p>{html.escape(self._status(look, images, nobodys, lines))}</p>"
            return [status, _pairs(lines, images, nobodys), self._file(look), look, to_other, _commands(self.studio, look.voter)]
        except (DiffalignError, OSError) as error:
            return _refused(error)

    def loaded(self, file: str | None, look: Look, prompts: str, strength: float, to_other: float, *, second: bool) -> list[Any]:
        """Draw for the taste in a file, or on the way to it where it is a second person's."""
        if not file:
            return _message("Choose a file.")
        try:
            tokens = self.studio.read(Path(file))
        except DiffalignError as error:
            return _message(str(error).replace(file, Path(file).name))
        if second:
            return self.drawn(replace(look, other=tokens), prompts, strength, to_other or 0.5)
        return self.drawn(replace(look, mine=tokens, from_file=True), prompts, strength, to_other)

    def _status(self, look: Look, images: Sequence[Image.Image], nobodys: Sequence[Image.Image], prompts: Sequence[str]) -> str:
        """Return in words what the page knows of a taste."""
        if look.from_file:
            return f"The taste of your file. {self.studio.words_of(images, nobodys, prompts)}"
        count = len(self.studio.choices(look.voter)) if look.voter else 0
        if not count:
            return "These are nobody's pictures; choose on the left, and yours appear beside them."
        hint = f"{FEW - count} more tell much more." if count < FEW else "Further ones would tell little." if count >= MANY else ""
        return f"{count} {'choice' if count == 1 else 'choices'}. {self.studio.words(look.voter or '')} {hint}"

    def _file(self, look: Look) -> Any:
        """Return the update of the button that saves a taste."""
        if look.mine is None:
            return gr.update(value=None, interactive=False)
        with tempfile.TemporaryDirectory() as folder:
            self.studio.personal.for_user(look.mine).save(Path(folder) / FILE)
            data = (Path(folder) / FILE).read_bytes()
        return gr.update(value=save_bytes_to_cache(data, FILE, get_upload_folder()), interactive=True)


def yours_page(studio: Studio | None, accounts: Accounts) -> None:
    """Add the page's components to the `gr.Blocks` around it; without a personalised run, a text that says how to train one."""
    if studio is None:
        gr.Markdown(HOW_TO_TRAIN)
        return
    gr.Markdown(
        f"Choose what you like better, {FEW} to {MANY} times. After each choice the model draws for you, beside what it draws for nobody."
    )
    ballot = Ballot(studio.store, choose=lambda voter: lambda pairs: studio.next_pair(voter, pairs), enough=None, ahead=AHEAD)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320, elem_id=WIDGET):
            widget = vote_page(ballot, accounts, "yours", compact=True)
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(elem_id="yours-status")
            looks = gr.HTML(css_template=STYLE, elem_id="yours-looks")
    with gr.Row():
        strength = gr.Slider(0.0, 1.0, value=1.0, step=0.1, label="From nobody (0) to you (1)", elem_id="yours-strength")
        to_other = gr.Slider(0.0, 1.0, value=0.0, step=0.1, label="From you (0) to a second person (1)", elem_id="yours-to-other")
    prompts = gr.Textbox(
        "\n".join(studio.prompts[:PROMPTS]), label=f"Prompts to look at, one on each line, {PROMPTS} at most", max_length=2000
    )
    with gr.Row():
        redraw = gr.Button("Draw these prompts", elem_id="yours-draw")
        save = gr.DownloadButton("Save your taste", interactive=False, elem_id="yours-save")
        mine = gr.UploadButton("Load a taste", file_types=[".safetensors"], elem_id="yours-load")
        other = gr.UploadButton("Load a second person", file_types=[".safetensors"], elem_id="yours-load-other")
        afresh = gr.Button("Start afresh", elem_id="yours-afresh")
    with gr.Accordion("The same on the command line and in Python", open=False):
        commands = gr.Markdown(_commands(studio, None))
    look, sitting = gr.State(Look()), Sitting(studio, accounts)
    settings, news = [look, prompts, strength, to_other], [status, looks, save, look, to_other, commands]
    queue: dict[str, Any] = {"concurrency_id": "yours", "concurrency_limit": 1, "trigger_mode": "always_last"}
    widget.counted(sitting.chosen, settings, news, **queue)
    for event in (strength.release, to_other.release, redraw.click):
        event(sitting.drawn, settings, news, **queue)
    for upload, second in ((mine, False), (other, True)):
        upload.upload(partial(sitting.loaded, second=second), [upload, *settings], news, **queue)
    afresh.click(lambda look: studio.forget(look.voter), look, None).then(None, js=REFRESH)


def _message(text: str) -> list[Any]:
    """Return the page's news of which only the status is new."""
    return [f"<p>{html.escape(text)}</p>", *[gr.skip()] * 5]


def _refused(error: Exception) -> list[Any]:
    """Return why nothing was drawn; what an error says of the server goes to the log and not to the page."""
    if isinstance(error, AccessError):
        return _message(str(error))
    logger.warning("the page Yours: %s", error)
    return _message("It could not be drawn; the log of the server says why.")


def _pairs(prompts: Sequence[str], images: Sequence[Image.Image], nobodys: Sequence[Image.Image]) -> str:
    """Return the pictures of two people as HTML, prompt by prompt."""
    figures = []
    for prompt, *both in zip(prompts, images, nobodys, strict=True):
        parts = "".join(
            f"<div>{picture_tag(encode_image(image), prompt, f'{prompt}, {whose}', SIDE)}<span>{whose}</span></div>"
            for image, whose in zip(both, WHOSE, strict=True)
        )
        figures.append(f'<figure><figcaption>{html.escape(prompt)}</figcaption><div class="two">{parts}</div></figure>')
    return f'<div class="looks">{"".join(figures)}</div>'


def _commands(studio: Studio, voter: str | None) -> str:
    """Return how to make a visitor's taste and use it without the page."""
    run, prompt, store = studio.name, studio.prompts[0], str(studio.store.path)
    embed = ["user", "embed", "--output_dir", run, "--dataset_name", store, "--user_id", voter or "NAME", "--destination", FILE]
    draw = ["eval", "--output_dir", run, "--user", FILE, "--prompts", prompt]
    return f"""```bash
{typed([*CLI, *embed])}
{typed([*CLI, *draw])}
```
```python
run = diffalign.load({without_folders(repr(run))})
mine = run.for_user("{FILE}")  # or for_user([(prompt, preferred image, other image), ...])
mine({prompt!r}).images[0]
mine.mixed(run.for_user("second.safetensors"), 0.5)  # half way to a second person; mixed(None, 0.5): to nobody
```"""
