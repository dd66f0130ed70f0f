"""The page on which a prompt writer shows what it learned: a short prompt, its rewrites before and after, and pictures of all three."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from diffalign.app.commands import CLI
from diffalign.app.markup import command_details, picture_tag, without_folders
from diffalign.app.options import EMBEDDED_WRITER, AppConfig
from diffalign.app.voters import AccessError, Accounts
from diffalign.app.writer import DrawnVersion, WriterProcess
from diffalign.core.errors import DiffalignError
from diffalign.core.runs import Run
from diffalign.models.backbones.folders import resolve

LONGEST_PROMPT = 500  # characters
LAST_SEED = 2**31 - 1
SIDE = 256  # pixels of a picture at most
# What stands above each version's pictures.
TITLES = {"prompt": "Your prompt as it is", "base": "Rewritten before training", "trained": "Rewritten after training"}
EMBEDDED_ABOUT = " This one comes with diffalign; it was trained on a taste for shapes near the top, and writes of the shapes world alone."


@dataclass(frozen=True, slots=True)
class Desk:
    """What the page does: checks who asks, and hands the prompt to the writers."""

    config: AppConfig
    writers: WriterProcess
    accounts: Accounts

    @classmethod
    def of(cls, config: AppConfig, folder: Path, accounts: Accounts) -> Desk:
        """Return the desk of an app whose files lie in `folder`. Raises CheckpointError where `writer` names no run of a language model."""
        Run.open(resolve(config.writer), expects="text")
        flags = (*flags_of(config), "--destination", str(folder / "rewrites"))
        return cls(config, WriterProcess(flags, folder / "rewrites.txt"), accounts)

    def versions(self, login: str | None, prompt: str, seed: int) -> Mapping[str, DrawnVersion]:
        """Return the versions of a prompt, by writer. Raises AccessError unless an owner asks, and for what is no short prompt."""
        if not self.accounts.is_owner(login):
            raise AccessError("only owners draw")
        if not 0 < len(prompt.strip()) <= LONGEST_PROMPT or not 0 <= seed <= LAST_SEED:
            raise AccessError(f"type a prompt of at most {LONGEST_PROMPT} letters, and a seed from 0 to {LAST_SEED}")
        return self.writers.versions(prompt.strip(), seed)


def flags_of(config: AppConfig) -> tuple[str, ...]:
    """Return the flags of `diffalign rewrite` that name the app's writer and model."""
    return "--output_dir", config.writer, "--pretrained_model_name_or_path", config.pretrained_model_name_or_path


def rewrite_page(desk: Desk) -> None:
    """Add the page's components to the `gr.Blocks` around it."""
    embedded = EMBEDDED_ABOUT if desk.config.writer == EMBEDDED_WRITER else ""
    gr.Markdown(
        f"A language model writes a fuller prompt from a short one. Here is `{html.escape(Path(desk.config.writer).name)}` before its "
        f"training and after: each column is one seed, of the words and of the picture. What a writer added is marked.{embedded}"
    )
    with gr.Row():
        prompt = gr.Textbox("a star", label="A short prompt", max_length=LONGEST_PROMPT, elem_id="rewrite-prompt", scale=3)
        seed = gr.Number(0, label="Seed", minimum=0, maximum=LAST_SEED, precision=0, elem_id="rewrite-seed", min_width=80)
        draw = gr.Button("Rewrite and draw", variant="primary", elem_id="rewrite-draw")
    css = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    waiting = "<p>The first prompt takes some seconds longer: the models are loaded.</p>"
    shown = gr.HTML(waiting, css_template=css, js_on_load=None, elem_id="rewrite-shown", min_height=120)

    def rewrite(prompt: str, seed: int | None, request: gr.Request) -> str:
        try:
            versions = desk.versions(request.username, prompt or "", int(seed or 0))
        except (DiffalignError, AccessError) as error:
            return f"<p>{html.escape(without_folders(str(error)))}</p>"
        return versions_shown(versions) + command_details(
            [*CLI, "rewrite", *flags_of(desk.config), "--prompts", prompt.strip(), "--seed", str(int(seed or 0))]
        )

    for event in (draw.click, prompt.submit):
        event(rewrite, [prompt, seed], shown, concurrency_id="writers", concurrency_limit=1)


def versions_shown(versions: Mapping[str, DrawnVersion]) -> str:
    """Return the versions of a prompt as HTML: a row of pictures for each writer, the words below, those marked that the writer added."""
    words = set(_words(versions["prompt"].texts[0]))
    parts = []
    for writer, version in versions.items():
        figures = "".join(
            f"<figure>{picture_tag(image, 'a drawn picture', text, SIDE)}<figcaption>{_marked(text, words)}</figcaption></figure>"
            for text, image in zip(version.texts, version.images, strict=True)
        )
        parts.append(f'<section class="version"><h3>{TITLES[writer]}</h3><div class="pictures">{figures}</div></section>')
    return f'<div class="versions">{"".join(parts)}</div>'


def _marked(text: str, words: Collection[str]) -> str:
    """Return a text as HTML in which words are marked that are not among `words`."""
    pieces = re.split(r"(\w+)", text)  # every second one is a word
    return "".join(
        f"<mark>{html.escape(piece)}</mark>" if number % 2 and piece.lower() not in words else html.escape(piece)
        for number, piece in enumerate(pieces)
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
