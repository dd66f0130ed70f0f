"""The command line: jsonargparse over the config dataclasses; `--config` YAML first, flags on top; nothing unknown is passed over."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from diffalign.cli.commands import eval as commands_eval
from diffalign.cli.commands import pairs as commands_pairs
from diffalign.cli.commands import run as commands
from diffalign.cli.commands import score as commands_score
from diffalign.cli.options.judging import JUDGING
from diffalign.cli.options.options import (
    ChesConfig,
    EmbedConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    QuickstartConfig,
    TextQuickstartConfig,
    ValidateConfig,
)
from diffalign.cli.options.score import ScoreConfig
from diffalign.cli.parser import build_parser, made
from diffalign.core.errors import DiffalignError
from diffalign.evaluate.options import EvalConfig
from diffalign.infer.options import GenerateConfig
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import load_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for problems found, 2 for input that cannot be used."""
    given = sys.argv[1:] if argv is None else list(argv)
    argv = _without_bare_trajectory(given)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # else every load warns that the adapter has no text-encoder part
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("diffalign").setLevel(logging.INFO)
    try:
        loop = TextQuickstartConfig if argv[:1] == ["quickstart"] and "--text" in argv else QuickstartConfig
        parser, configured = build_parser(loop, judging=argv[:1] == ["eval"] and argv[1:2] != [] and not argv[1].startswith("-"))
        path = _config_path(argv)
        for words, sub in configured.items():
            if path is not None and tuple(argv[: len(words)]) == words:
                sub.set_defaults(load_yaml(path))
        return _run(parser.parse_args(argv), given)
    except DiffalignError as error:
        sys.stderr.write(f"diffalign: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("diffalign: stopped; a training run goes on from its last checkpoint with --resume_from_checkpoint latest\n")
        return 130


def _without_bare_trajectory(argv: list[str]) -> list[str]:
    """Return the words without a `--trajectory` of `data cache` that names no spec."""
    if argv[:2] != ["data", "cache"]:
        return argv
    pairs = zip(argv, [*argv[1:], "--"], strict=True)
    return [word for word, after in pairs if not (word == "--trajectory" and after.startswith("--"))]


def _config_path(argv: Sequence[str]) -> str | None:
    """Return the value of `--config` in a command line: its keys become defaults before the flags are parsed."""
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith("--config="):
            return word.split("=", 1)[1]
    return None


def _run(parsed: Any, argv: Sequence[str]) -> int:
    values = (
        {name: value for name, value in parsed[parsed.command].as_dict().items() if name != "config"} if parsed.command != "env" else {}
    )
    if parsed.command == "data":
        kind = parsed.data.kind
        if kind == "cache":
            options = {name: value for name, value in values["cache"].items() if name != "config"}
            return commands.data_cache(made(TrainConfig, options), points="--trajectory" in argv)
        config, run = {
            "ches": (ChesConfig, commands.data_ches),
            "import": (ImportConfig, commands.data_import),
            "inspect": (InspectConfig, commands.data_inspect),
            "validate": (ValidateConfig, commands.data_validate),
        }[kind]
        return run(config(**values[kind]))
    if parsed.command == "pairs":
        return commands_pairs.generate(made(GenerateConfig, values["generate"]))
    if parsed.command == "score":
        return commands_score.score(made(ScoreConfig, values))
    if parsed.command == "user":
        return commands.user_embed(EmbedConfig(**values["embed"]))
    if parsed.command == "quickstart":
        command = shlex.join(["diffalign", *argv])
        if values.pop("text"):
            return commands.quickstart_text(TextQuickstartConfig(**values), command)
        return commands.quickstart(QuickstartConfig(**values), command)
    if parsed.command == "train":
        dry_run = values.pop("dry_run")
        return commands.train(made(TrainConfig, values), dry_run=dry_run)
    if parsed.command == "eval" and "kind" in values:
        from diffalign.cli.commands import judging as commands_judging  # scipy.stats takes a second to import

        return commands_judging.RUN[values["kind"]](JUDGING[values["kind"]][0](**values[values["kind"]]))
    if parsed.command == "eval":
        return commands_eval.evaluate(made(EvalConfig, values), shlex.join(["diffalign", *argv]))
    if parsed.command == "export":
        return commands.export(ExportConfig(**values))
    return commands.env()
