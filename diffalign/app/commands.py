"""The commands of `diffalign` that the app runs as processes of their own, and how a page shows them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffalign.core.keys import changed
from diffalign.infer.options import DrawVotesConfig

CLI = (sys.executable, "-m", "diffalign.cli")
SHOWN = 3  # last parts of a path that a page shows


def draw_command(config: DrawVotesConfig) -> list[str]:
    """Return the process that draws into a vote store."""
    return [*CLI, "votes", "draw", *_flags(config)]


def export_command(run: str | Path, destination: str | Path) -> list[str]:
    """Return the process that writes a run as files for other programs."""
    return [*CLI, "export", "--output_dir", str(run), "--destination", str(destination)]


def typed(command: Sequence[str]) -> str:
    """Return what one would type to do the same, without the folders of the server in full.

    >>> typed([*CLI, "export", "--output_dir", "/home/ada/outputs/app/trainings/mine/mine"])
    'diffalign export --output_dir …/trainings/mine/mine'
    """
    return " ".join(["diffalign", *(_short(word) for word in command[len(CLI) :])])


def _short(word: str) -> str:
    path = Path(word)
    return f"…/{shlex.quote('/'.join(path.parts[-SHOWN:]))}" if path.is_absolute() else shlex.quote(word)


def _flags(config: Any) -> list[str]:
    """Return the flags of a config, those with its defaults left out."""
    words: list[str] = []
    for name in changed(config):
        value = getattr(config, name)
        words.append(f"--{name}")
        if value is not True:
            words += [str(one) for one in (value if isinstance(value, list) else [value])]
    return words
