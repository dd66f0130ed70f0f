"""Runs what the README and the documentation say: every command and every block of Python, in order, in a copy of the repository.

python -m scripts.docs_check                                 all pages; the copy is removed afterwards
python -m scripts.docs_check --folder outputs/docs_check     in a copy that stays and is used again, for some `--pages` alone

A block under `<!-- not run: REASON -->` is left out, and counted. A block of Python is a program of its own. Without network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import auto_cli

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(?P<language>bash|python)[^\n]*\n(?P<text>.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
LEFT_OUT = re.compile(r"<!--\s*not run:\s*(?P<reason>(?:(?!-->).)*?)\s*-->\s*\Z", re.DOTALL)
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", "outputs", "site", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
ERRORS = "docs/errors.md"  # whose headings are parts of messages
LIMIT = 1800.0  # seconds of one command
TAIL = 30  # lines of a failed command's output
WIDTH = 110  # letters of a command in the table


@dataclass(frozen=True, slots=True)
class Example:
    """One command, or one block of Python."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None  # why it is not run


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an example."""

    example: Example
    outcome: str  # ran, FAILED or skipped
    seconds: float = 0.0
    output: str = ""


def all_pages(root: Path) -> list[str]:
    """Return the README, the pages of the site in the order of its menu, and the cards of the embedded models."""

    def files(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield f"docs/{entry}"
        else:
            for one in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
                yield from files(one)

    menu = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    cards = sorted(card.relative_to(root).as_posix() for card in root.glob("assets/*/README.md"))
    return ["README.md", *(page for page in files(menu) if (root / page).is_file()), *cards]


def examples(page: str, text: str) -> list[Example]:
    """Return what a page says to do: each command of a bash block, and each Python block as a whole."""
    blocks = []
    for fence in FENCE.finditer(text):
        left_out = LEFT_OUT.search(text[: fence.start()])
        reason = None if left_out is None else " ".join(left_out["reason"].split())
        first = text.count("\n", 0, fence.start()) + 2
        whole = [(0, fence["text"])]
        for offset, words in whole if fence["language"] == "python" else commands(fence["text"]):
            blocks.append(Example(page, first + offset, fence["language"], words, reason))
    return blocks


def commands(block: str) -> Iterator[tuple[int, str]]:
    """Yield each command of a bash block with its line: lines that end in a backslash go on, comments are none."""
    begun, parts = 0, []
    for number, line in enumerate(block.splitlines()):
        begun = begun if parts else number
        parts.append(line)
        if line.rstrip().endswith("\\"):
            continue
        command = "\n".join(parts)
        if command.strip() and not command.lstrip().startswith("#"):
            yield begun, command
        parts = []


def quotes(text: str, package: Path) -> list[str]:
    """Return the headings of docs/errors.md that no message of the package holds; three dots stand for anything, and marks do not count."""
    files = (file.read_text(encoding="utf-8") for file in sorted(package.rglob("*.py")))
    source = re.sub(r"\"\s*\n\s*f?\"", "", "\n".join(files)).replace("`", "")  # messages stand in several lines
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    return [heading for heading in headings if any(part.strip() not in source for part in heading.split("..."))]


def copy(folder: Path) -> None:
    """Copy the repository to `folder`, with a .venv that runs this very Python, so that `make` and `diffalign` work there."""
    shutil.copytree(ROOT, folder, ignore=LEFT_BEHIND, dirs_exist_ok=True)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name, runs in (("python", ""), ("diffalign", " -m diffalign.cli"), ("accelerate", " -m accelerate.commands.accelerate_cli")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{runs} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    (folder / ".venv" / ".installed").touch()  # later than what make would install


def run(example: Example, folder: Path) -> Result:
    """Do it in `folder`, and say how it went."""
    if example.reason is not None:
        return Result(example, "skipped", output=example.reason)
    python, shell = [sys.executable, "-c", example.text], ["bash", "-e", "-o", "pipefail", "-c", example.text]
    start = time.perf_counter()
    try:
        done = subprocess.run(  # noqa: S603  # the repository's own documentation
            python if example.language == "python" else shell,
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(example, "FAILED", time.perf_counter() - start, f"it took more than {LIMIT:.0f} seconds")
    return Result(example, "ran" if done.returncode == 0 else "FAILED", time.perf_counter() - start, done.stdout)


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a command: the copy's programs and package first, and no hub."""
    return os.environ | {
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }


def table(results: Sequence[Result]) -> str:
    """Return a line for each example, and how many there are of each kind."""
    lines = []
    for one in results:
        last = f"python: {one.example.text.strip().splitlines()[-1]}"
        words = last if one.example.language == "python" else " ".join(one.example.text.replace("\\\n", " ").split())
        shown = words if len(words) <= WIDTH else f"{words[: WIDTH - 3]}..."
        why = f"   [{one.output}]" if one.outcome == "skipped" else ""
        lines.append(f"{one.outcome:7} {one.seconds:7.1f} s  {f'{one.example.page}:{one.example.line}':34} {shown}{why}")
    counts = ", ".join(f"{sum(one.outcome == kind for one in results)} {kind}" for kind in ("ran", "FAILED", "skipped"))
    return "\n".join([*lines, f"{counts}; {sum(one.seconds for one in results) / 60:.1f} minutes"])


def main(pages: list[str] | None = None, folder: Path | None = None) -> None:
    """Run the pages, print the table, and exit with 1 where something failed.

    Args:
        pages: these pages alone, for example docs/beta.md.
        folder: where the copy of the repository lies; it stays. A temporary one if not given.
    """
    every = all_pages(ROOT)
    if strange := [page for page in pages or () if page not in every]:
        sys.exit(f"{strange[0]}: not a page of the documentation; expected one of {', '.join(every)}")
    place = Path(tempfile.mkdtemp(prefix="docs_check_")) if folder is None else folder.resolve()
    copy(place)
    results = []
    for page in pages or every:
        if page == ERRORS and (missing := quotes((ROOT / page).read_text(encoding="utf-8"), ROOT / "diffalign")):
            sys.exit(f"{page}: no message of the package holds: {'; '.join(missing)}")
        for example in examples(page, (ROOT / page).read_text(encoding="utf-8")):
            results.append(run(example, place))
            print(table(results[-1:]).splitlines()[0], flush=True)
            if results[-1].outcome == "FAILED":
                print("\n".join(f"    {line}" for line in results[-1].output.splitlines()[-TAIL:]), flush=True)
    if folder is None:
        shutil.rmtree(place)
    print(f"\n{table(results)}")
    sys.exit(any(one.outcome == "FAILED" for one in results))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
