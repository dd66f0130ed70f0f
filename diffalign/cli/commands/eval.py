"""What `diffalign eval` does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.data.prompts import prompts_of, subset
from diffalign.evaluate.options import EvalConfig
from diffalign.rewards.base import standing


def evaluate(config: EvalConfig, command: str) -> int:
    """Write the comparison, and print the short of it."""
    if not config.prompts and not config.dataset_name:
        raise ConfigError("`diffalign eval` needs --prompts to draw, or --dataset_name with pairs not trained on")
    if not (Path(config.output_dir) / "run.json").is_file():
        raise ConfigError(f"{config.output_dir}: no finished run; expected the output_dir of `diffalign train`")
    prompts = subset(list(dict.fromkeys(prompts_of(config.prompts))), config.max_prompts, config.seed)
    if config.user is not None and (config.user_id is not None or config.pairs is not None):
        raise ConfigError("`user` is a file with all that is known of the user; leave out --user_id and --pairs")
    if json.loads((Path(config.output_dir) / "run.json").read_text()).get("kind") == "text":
        from diffalign.cli.commands.text import compared  # torch and transformers take seconds to import

        print(json.dumps(compared(config, prompts), indent=2))
        return 0
    from diffalign.evaluate import compare as evaluation  # torch and diffusers take seconds to import

    facts = evaluation.evaluate(config, prompts, command=command, user=_whom(config))
    if facts is not None:
        print("\n".join(_lines(facts)))
        for name in (evaluation.RESULT, evaluation.PAGE) if prompts else (evaluation.RESULT,):
            print(evaluation.destination(config) / name)
    return 0


def _whom(config: EvalConfig) -> Any:
    """Return whom a personalised run draws for, as its `for_user` takes it."""
    if config.pairs is None:
        return Path(config.user) if config.user is not None else config.user_id
    from diffalign.infer.embed_users import choices_of

    return choices_of(config.pairs, config.user_id)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is said of an evaluation."""
    yield from _table(facts)
    for run, reasons in facts.get("alarm", {}).items():
        silent = f"silent about {', '.join(scorer['name'] for scorer in facts['scorers'] if scorer['reward'])}"
        quiet = f"could not go off: {facts['mute'][run]}" if run in facts["mute"] else silent
        yield from [f"ALARM {run}: {reason}" for reason in reasons] or [f"alarm {run}: {quiet}"]
    if "ratings" in facts:
        from diffalign.evaluate.ratings import Rating, table

        for scorer, rated in facts["ratings"].items():
            yield f"Bradley-Terry by {scorer}:"
            yield table([Rating(**rating) for rating in rated]) if rated else "  nothing could be judged"
    if "implicit_accuracy_heldout" in facts:
        yield f"implicit accuracy on held-out pairs: {facts['implicit_accuracy_heldout']:.4f}"


def _table(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for every run and scorer."""
    known = {scorer["name"]: standing(scorer) for scorer in facts.get("scorers", [])}
    for run in facts.get("runs", [])[1:]:
        yield f"{run['name']} against {facts['runs'][0]['path']}, {facts['prompts']} prompts:"
        for one in facts["comparisons"]:
            if one["run"] == run["name"]:
                yield f"  {one['scorer']:14} {_said(one)}  ({known[one['scorer']]})"


def _said(one: Mapping[str, Any]) -> str:
    """Return win rate, sign test and change of one comparison."""
    if one["win_rate"] is None:
        return "no image could be judged"
    spread = "no interval" if None in one["ci95"] else f"{one['ci95'][0]:.3f} to {one['ci95'][1]:.3f}"
    gained = "" if None in one["change_ci95"] else f" ({one['change_ci95'][0]:+.3f} to {one['change_ci95'][1]:+.3f})"
    record = f"{one['wins']} won, {one['losses']} lost, {one['ties']} even: p {one['sign_test_p']:.2g}"
    return f"win rate {one['win_rate']:.3f} ({spread})  {record}  change {one['change']:+.3f}{gained}"
