"""The parsers of the command line: a flag for each field of a config dataclass, under its own name and its aliases."""

from __future__ import annotations

import dataclasses
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from diffalign.cli.options.judging import JUDGING
from diffalign.cli.options.options import (
    ChesConfig,
    EmbedConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    QuickstartConfig,
    ValidateConfig,
)
from diffalign.cli.options.score import SCORES, ScoreConfig
from diffalign.core.errors import did_you_mean
from diffalign.core.specs import Spec
from diffalign.data.readers import READERS
from diffalign.evaluate.options import EVALS, EvalConfig
from diffalign.infer.options import GENERATES, GenerateConfig
from diffalign.methods.config import ALIASES, TrainConfig

T = TypeVar("T")

EXAMPLES = """examples:
  diffalign quickstart                                        the whole loop on the embedded model, with a report
  diffalign quickstart --text                                 the same for the language model that writes its prompts
  diffalign data import --dataset_name votes.csv --output_dir votes
  diffalign data inspect --dataset_name votes
  diffalign pairs generate --prompts prompts.txt --scorers '[{taste: {name: high}}]' --output_dir ranked
  diffalign score --dataset_name votes --scorers '[pickscore]' --output_dir votes-scored
  diffalign data cache --config configs/inpo_sd15.yaml --dataset_name votes --trajectory
  diffalign train --config configs/diffusion_dpo_sd15.yaml --dataset_name votes --dry_run
  diffalign train --config configs/diffusion_dpo_sd15.yaml --dataset_name votes --output_dir outputs/mine
  diffalign eval --output_dir outputs/mine --prompts prompts.txt
  diffalign eval agreement --dataset_name scored
  diffalign export --output_dir outputs/mine --destination outputs/mine-lora
  diffalign user embed --output_dir outputs/ppd --dataset_name ann.csv --destination ann.safetensors
"""
BETA = """beta: the score of an image is -1/2 times the mean squared denoising error over its latent, and beta multiplies differences of
scores, as in the Diffusion-DPO release. LARGER beta = the model stays CLOSER to where it started. 2000 to 5000 is usual.
  diffusers train_diffusion_dpo.py (SD1.5)   --beta_dpo 2500 there = 5000 here
  diffusers train_diffusion_dpo_sdxl.py      --beta_dpo 5000 there = 5000 here
  SimpleTuner and other sums over the latent beta there * 2 * C * H * W = beta here (SD1.5 at 512 px: * 32768)
"""


TEXT = "The loop for a language model that writes prompts, instead; with --help, the flags of that loop."
POINTS = """--trajectory alone keeps points of the method's own trajectory, computed with the reference as driver: as many for each record
as --trajectory_cache says, four if it says nothing; with a spec it names another trajectory, as in `diffalign train`.
"""


EXPORTS = """files:
  pytorch_lora_weights.safetensors   diffusers: pipe.load_lora_weights(folder), with the adapter's config
  <name>_comfyui.safetensors         ComfyUI (models/loras) and kohya's scripts: their keys, and the alpha of the training
  model_index.json, unet/, ...       merged: a whole pipeline for from_pretrained, in --dtype
  README.md                          model card: method, base, data, settings, and what `diffalign eval` measured
examples:
  diffalign export --output_dir outputs/mine --destination outputs/mine-lora
  diffalign export --output_dir outputs/mine --destination outputs/mine-fp16 --formats merged --dtype fp16
  diffalign export --output_dir outputs/mine --destination outputs/mine-lora --push_to_hub --hub_model_id me/mine-lora
A result of diffusion_npo or self_npo is for the unconditional branch of guidance alone; it is not merged.
A personalised run (ppd) is an IP-Adapter that stock pipelines load (ip_adapter.safetensors), its user encoder, and --users as
examples; only diffusers takes it, and it cannot be merged: what it adds depends on the user.
"""
EMBEDS = """what is done about
  no pairs                  refused: at least one pair with a preference; pictures without a user are drawn by the base
  one pair                  used, and said: it says little of a taste; four say much more, and the order does not matter
  contradicting pairs       the same two images preferred both ways: used, named in a warning; the set encoder lets them cancel
  an image that is broken   refused, with its row
  a user not trained on     served from their pairs by the encoders pairs, vlm and mixture; one_hot serves its training users alone
  a file of another run     refused where it is used: tokens mean nothing to another encoder
examples:
  diffalign user embed --output_dir outputs/ppd --dataset_name ann.csv --destination ann.safetensors
  diffalign user embed --output_dir outputs/ppd --dataset_name votes --user_id ann --max_pairs 4 --destination ann.safetensors
  diffalign user embed --output_dir outputs/ppd --dataset_name votes --destination users        (a file for each user)
  diffalign eval --output_dir outputs/ppd --prompts prompts.txt --user ann.safetensors
in Python:
  diffalign.load("outputs/ppd").for_user("ann.safetensors")("a red star").images[0]
"""


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and examples."""


class Parser(ArgumentParser):
    """Says one sentence and the nearest flag, instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ARG002  # jsonargparse's signature
        """Exit with status 2."""
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        unknown = re.search(r"nrecognized arguments: (--[\w\-.]+)", message)
        hint = did_you_mean(unknown.group(1), flags) if unknown else ""
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split()).rstrip('.')}.{hint} See --help.\n")
        sys.exit(2)


def _parser(about: str, epilog: str | None = None, config: type | None = None) -> Parser:
    """Return a parser with a flag for each field of `config`, under its own name and its aliases."""
    parser = Parser(prog="diffalign", description=about, epilog=epilog, formatter_class=Formatter, allow_abbrev=False)
    if config is None:
        return parser
    hints = get_type_hints(config)
    helps = {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(config).params}
    for item in dataclasses.fields(config):
        names = [f"--{item.name}", *(f"--{alias}" for alias, name in ALIASES.items() if name == item.name)]
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        keywords: dict[str, Any] = {"help": helps[item.name].replace("%", "%%")}
        if default is dataclasses.MISSING:
            keywords["required"] = True
        else:
            keywords["default"] = default
        if hints[item.name] == list[str]:
            keywords |= {"nargs": "+", "type": str}
        elif hints[item.name] == list[Spec]:
            keywords |= {"nargs": "+", "type": list[Spec] | Spec}
        elif hints[item.name] is bool:
            keywords |= {"action": ActionYesNo}
        else:
            keywords["type"] = hints[item.name]
        parser.add_argument(*names, **keywords)
    return parser


def made(config: type[T], values: Mapping[str, Any]) -> T:
    """Return the config of parsed values. Specs are given in words, any of them a list: `pickscore hps`, `[pickscore, hps]`."""
    hints = get_type_hints(config)
    return config(**{name: _flat(value) if hints[name] == list[Spec] else value for name, value in values.items()})


def _flat(values: Sequence[Spec | list[Spec]]) -> list[Spec]:
    return [spec for value in values for spec in (value if isinstance(value, list) else [value])]


def build_parser(loop: type = QuickstartConfig, *, judging: bool = False) -> tuple[Parser, dict[tuple[str, ...], Parser]]:
    """Return the parser of all subcommands, and those of `train` and `data cache`, whose defaults a YAML file may set.

    `loop` has the flags of `quickstart`; `judging` puts the kinds of `eval` in the place of its flags.
    """
    parser = _parser("Align image generators, and the language models that prompt them, with human preferences.", EXAMPLES)
    train, cache = _configured()
    quickstart = _parser(_about(loop), None, loop)
    quickstart.add_argument("--text", action="store_true", help=TEXT)
    data = _parser("Import, inspect and validate preference datasets.")
    pairs = _parser("Make preferences without voters: images of a model itself, ranked by scorers.")
    evaluation = _parser("Judge the judges.") if judging else _parser(_about(EvalConfig), EVALS, EvalConfig)
    user = _parser("Make a personalised run's users known to it.")
    commands_of = parser.add_subcommands(dest="command", metavar="quickstart | train | data | pairs | score | eval | export | user | env")
    for name, sub, about in (
        ("quickstart", quickstart, "the whole loop on the embedded model"),
        ("train", train, "fine-tune a model on preferences"),
        ("data", data, "import, inspect and validate preference datasets"),
        ("pairs", pairs, "make preferences of a model's own images, ranked by scorers"),
        ("score", _parser(_about(ScoreConfig), SCORES, ScoreConfig), "score images by reward models"),
        ("eval", evaluation, "compare a trained run with its base model"),
        ("export", _parser(_about(ExportConfig), EXPORTS, ExportConfig), "write a run as files for other programs"),
        ("user", user, "turn a user's choices into a file for a personalised run"),
        ("env", _parser("Print versions for a bug report."), "versions, for a bug report"),
    ):
        commands_of.add_subcommand(name, sub, help=about)
    _add_kinds(data, cache)
    if judging:
        _add_judging(evaluation)
    _add_kind(pairs, "generate", GenerateConfig, GENERATES, "draw, score and rank images")
    _add_kind(user, "embed", EmbedConfig, EMBEDS, "write the file of a user, or of many")
    return parser, {("train",): train, ("data", "cache"): cache}


def _configured() -> tuple[Parser, Parser]:
    """Return the parsers of `train` and `data cache`."""
    train = _parser("Fine-tune a model on preferences.", BETA, TrainConfig)
    cache = _parser("Compute latents, prompt embeddings and points of a trajectory before training.", POINTS, TrainConfig)
    for configured in (train, cache):
        configured.add_argument("--config", help="YAML file with any of these keys; flags override it.")
    train.add_argument(
        "--dry_run",
        action=ActionYesNo,
        default=False,
        help="Say what would be trained and how much memory it takes; load and write nothing.",
    )
    return train, cache


def _add_kind(parent: Parser, name: str, config: type, epilog: str, about: str) -> None:
    """Add the one thing that a subcommand does."""
    parent.add_subcommands(dest="kind", metavar=name).add_subcommand(name, _parser(_about(config), epilog, config), help=about)


def _add_kinds(data: Parser, cache: Parser) -> None:
    """Add what `diffalign data` does."""
    layouts = "layouts:\n" + "".join(f"  {name:24} {reader.about}\n" for name, reader in READERS.items())
    kinds = data.add_subcommands(dest="kind", metavar="import | cache | inspect | validate | ches")
    kinds.add_subcommand("import", _parser(_about(ImportConfig), layouts, ImportConfig), help="read a dataset into a table")
    kinds.add_subcommand("cache", cache, help="compute what training would compute first")
    kinds.add_subcommand("inspect", _parser(_about(InspectConfig), None, InspectConfig), help="show what a dataset holds")
    kinds.add_subcommand("validate", _parser(_about(ValidateConfig), None, ValidateConfig), help="look for what would spoil training")
    kinds.add_subcommand("ches", _parser(_about(ChesConfig), None, ChesConfig), help="score pairs of texts by how alike a model sees them")


def _add_judging(evaluation: Parser) -> None:
    """Add what `diffalign eval` does besides comparing a run with its base."""
    kinds = evaluation.add_subcommands(dest="kind", metavar=" | ".join(JUDGING))
    for name, (config, epilog, about) in JUDGING.items():
        kinds.add_subcommand(name, _parser(_about(config), epilog, config), help=about)


def _about(config: type) -> str:
    return (config.__doc__ or "").strip()
