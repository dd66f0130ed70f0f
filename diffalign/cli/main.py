"""The command line: a file of `commands` for each command, found by its name (`data_import.py` is `diffalign data import`)."""

from __future__ import annotations

import ast
import errno
import importlib
import io
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffalign.cli import commands
from diffalign.cli.invocation import set_command_line
from diffalign.core.errors import ConfigError, DiffalignError, did_you_mean
from diffalign.core.processes import ended_elsewhere
from diffalign.core.version import __version__

ABOUT = "Align image generators, and the language models that prompt them, with human preferences."
# What each word that stands before another one is about.
GROUPS = {
    "data": "import, inspect, validate and explain preference datasets",
    "pairs": "make preferences without voters",
    "votes": "pictures for people to vote on",
    "user": "write files of users, for whom a personalised run then draws",
    "eval": "judge models, and judge the judges",
}
EXAMPLES = """examples:
  diffalign quickstart                                        the whole loop on the embedded model, with a report
  diffalign data import --dataset_name votes.csv --output_dir votes
  diffalign train --config configs/diffusion_dpo_sd15.yaml --dataset_name votes --dry_run
  diffalign train --config configs/diffusion_dpo_sd15.yaml --dataset_name votes --output_dir outputs/mine
  diffalign eval --output_dir outputs/mine --prompts prompts.txt
  diffalign export --output_dir outputs/mine --destination outputs/mine-lora
Every command has --help, with its flags and more examples.
"""
Words = tuple[str, ...]
# What a disk or its rights refuse; any other error of the system is a fault of ours.
OF_THE_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EFBIG,
    errno.ENAMETOOLONG,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for problems found, 2 for input that cannot be used."""
    words = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("diffalign").setLevel(logging.INFO)
    _write_anything()
    try:
        _refuse_surrogates(words)
        set_command_line(words)
        return _run(words)
    except DiffalignError as error:
        sys.stderr.write(f"diffalign: error: {error}\n")
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write("diffalign: stopped\n")
        return 130
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"diffalign: error: {where}{error.strerror}\n")
        return 2
    except RuntimeError as error:
        if (sentence := ended_elsewhere(error)) is None:
            raise
        sys.stderr.write(f"diffalign: error: {sentence}\n")
        return 1


def _write_anything() -> None:
    """Let prints of people's texts write what the terminal's encoding lacks as \\u escapes, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse_surrogates(words: Sequence[str]) -> None:
    """Raise ConfigError for a word whose bytes are no text in the terminal's encoding."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            shown = word.encode("ascii", "backslashreplace").decode()
            raise ConfigError(f"`{shown}` is no text in the encoding of this terminal; set LANG=C.UTF-8, or PYTHONUTF8=1") from error


def _run(words: Sequence[str]) -> int:
    """Run the command that the first words name with the others as its flags."""
    table = names()
    second = len(words) > 1 and words[0] in GROUPS and not words[1].startswith("-")  # `eval` is a command, and a group of others
    for count in (2,) if second else (2, 1):
        if (name := tuple(words[:count])) in table:
            command = _command(name)
            from diffalign.cli.parser import parse

            prog = " ".join(["diffalign", *name])
            return command.run(parse(command.CONFIG, words[count:], prog=prog, epilog=command.HELP))
    if words and words[0] == "--version":
        sys.stdout.write(f"diffalign {__version__}\n")
        return 0
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_overview(()))
        return 0 if words else 2
    if words[0] in GROUPS and (len(words) == 1 or words[1] in ("-h", "--help")):
        sys.stdout.write(_overview((words[0],)))
        return 0 if len(words) > 1 else 2
    sys.stderr.write(f"diffalign: error: {_unknown(words, table)} See diffalign --help.\n")
    return 2


def names() -> list[Words]:
    """Return the words of every command, sorted."""
    return sorted(tuple(module.name.split("_")) for module in pkgutil.iter_modules(commands.__path__))


def _command(name: Words) -> Any:
    return importlib.import_module(f"{commands.__name__}.{'_'.join(name)}")


def _about(name: Words) -> str:
    """Return the line of a command, read from its file where it is a plain text there: importing all commands takes most of a second."""
    spec = find_spec(f"{commands.__name__}.{'_'.join(name)}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ABOUT":
            return ast.literal_eval(statement.value)
    return _command(name).ABOUT


def _overview(group: Words) -> str:
    """Return the commands of a group, or all of them, with a line each."""
    shown = [(" ".join(name), _about(name)) for name in names() if name[: len(group)] == group]
    width = max(len(name) for name, _ in shown)
    about = GROUPS[group[0]].capitalize() + "." if group else ABOUT
    lines = [f"  {name:{width}}   {text}" for name, text in shown]
    usage = " ".join(["usage: diffalign", *group, "COMMAND [flags]"])
    return "\n".join([usage, "", about, "", "commands:", *lines, "", *([] if group else [EXAMPLES])])


def _unknown(words: Sequence[str], table: Sequence[Words]) -> str:
    """Return what is wrong with words that name no command, with the nearest that do."""
    if words[0].startswith("-"):
        return f"`{words[0]}` stands before any command; the command comes first."
    if words[0] in GROUPS:
        siblings = [name[1] for name in table if name[0] == words[0] and len(name) == 2]
        return f"`diffalign {words[0]}` has no command `{words[1]}`.{did_you_mean(words[1], siblings)}"
    return f"there is no command `{words[0]}`.{did_you_mean(words[0], {name[0] for name in table})}"
