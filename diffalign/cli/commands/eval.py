"""`diffalign eval`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffalign.cli.invocation import command_line
from diffalign.core.errors import ConfigError
from diffalign.core.keys import changed, facts_of
from diffalign.core.runs import Run
from diffalign.evaluate.options import EvalConfig
from diffalign.rewards.base import record, standing
from diffalign.rewards.names import check_scorer_names, check_taste_name

CONFIG = EvalConfig
ABOUT = "compare a trained run with its base model"
HELP = """Every model draws the same prompts from the same noise: each image has a seed of its own, made of --seed, prompt and number.
  win rate     share of draws that score above the base's draw of the same seed, averaged by prompt; a draw counts one half where equal;
               95 % interval by bootstrap over prompts
               exact where fewer than 30 prompts are decided
               of a judge that compares (vlm with protocol: pairwise) it is the share of draws that its verdicts decide for the run
  sign test    exact, two-sided, over prompts: won where more draws are won than lost; prompts that tie are left out
  clear win    only where the interval lies above one half and the sign test has p of at most 0.05
  visible      wins by more than --visible_margin standard deviations of the base's scores: a person could see them
  change       mean score minus the base's, 95 % interval by bootstrap over prompts
  alarm        a held-out score falls, or pictures look otherwise: diversity, saturation, sharpness, fine patterns; needs 6 prompts
Writes eval.json (all numbers), eval.html (a page to flip between the models), grid.png, and images/ with what was drawn and scored:
the same command goes on there after a kill, and with another scorer or run draws nothing twice. With --runs the files are called after
these, eval-NAME.html, so that an earlier comparison stays.
examples:
  diffalign eval --output_dir outputs/mine --prompts prompts.txt
  diffalign eval --output_dir outputs/mine --prompts prompts.txt --scorers pickscore hps --reward imagereward
  diffalign eval --output_dir outputs/a --runs outputs/b old=outputs/c/train stabilityai/stable-diffusion-2-1 --prompts prompts.txt
  accelerate launch -m diffalign.cli eval ...            (every process draws and scores its share)
also: diffalign eval agreement (how well scorers agree with people), diffalign eval ratings (models by votes); see their --help
"""


def run(config: EvalConfig) -> int:
    """Write the comparison, and print the short of it."""
    if not config.prompts and not config.dataset_name:
        raise ConfigError("`diffalign eval` needs --prompts to draw, or --dataset_name with pairs not trained on")
    check_scorer_names([*config.scorers, *filter(None, [config.reward])])
    if config.taste is not None:
        check_taste_name(config.taste)
    finished = Run.open(config.output_dir)
    from diffalign.data.prompts import edits_to_draw, prompts_of, subset
    from diffalign.methods.edits import draws_edits

    table = config.prompts[0] if len(config.prompts) == 1 else None
    if config.prompts and draws_edits(config.output_dir, table):
        return _pictures(config, *edits_to_draw(table, config.max_prompts, config.seed, key="prompts"))
    prompts = subset(list(dict.fromkeys(prompts_of(config.prompts, column=config.caption_column))), config.max_prompts, config.seed)
    if config.user is not None and (config.user_id is not None or config.pairs is not None):
        raise ConfigError("`user` is a file with the user's tokens; leave out --user_id and --pairs")
    if config.sliders is not None and any(value is not None for value in (config.user, config.user_id, config.pairs)):
        raise ConfigError("`sliders` are of no user; leave out --user, --user_id and --pairs")
    return (_texts if finished.kind == "text" else _pictures)(config, prompts)


def _pictures(config: EvalConfig, prompts: list[str], inputs: Sequence[bytes] = ()) -> int:
    """Compare runs that draw, those of an edit model from `inputs`, one a prompt."""
    from diffalign.evaluate import compare  # torch and diffusers take seconds to import

    facts = compare.evaluate(config, prompts, command=command_line(), user=_user(config), inputs=inputs)
    if facts is not None:
        print("\n".join(_lines(facts)))
        for name in ("result", "page") if prompts else ("result",):
            print(compare.destination(config) / facts[name])
    return 0


def _texts(config: EvalConfig, prompts: list[str]) -> int:
    """Compare a language model's run with its base. Raises ConfigError for what only pictures have."""
    import torch

    from diffalign.evaluate.texts import compare_texts

    for name in changed(config):
        if "text" not in facts_of(config)[name].kinds:
            raise ConfigError(f"`{name}` is for image models, and {config.output_dir} is the run of a language model")
    facts = compare_texts(
        config.output_dir,
        prompts,
        dataset_name=config.dataset_name,
        dataset_split_name=config.dataset_split_name,
        reader=config.reader,
        device=config.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        seed=config.seed,
    )
    print(json.dumps(facts, indent=2))
    return 0


def _user(config: EvalConfig) -> Any:
    """Return the user that a personalised run draws for, as its `for_user` takes one."""
    if config.sliders is not None:
        return config.sliders
    if config.pairs is None:
        return Path(config.user) if config.user is not None else config.user_id
    from diffalign.infer.embed_users import choices_of

    return choices_of(config.pairs, config.user_id)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that are printed of an evaluation."""
    yield from _table(facts)
    for run, reasons in facts.get("alarm", {}).items():
        quiet = f"could not go off: {facts['mute'][run]}" if run in facts["mute"] else "silent"
        yield from [f"ALARM {run}: {reason}" for reason in reasons] or [f"alarm {run}: {quiet}"]
    if "ratings" in facts:
        from diffalign.evaluate.ratings import Rating, table

        for scorer, rated in facts["ratings"].items():
            yield f"Bradley-Terry by {scorer}:"
            yield table([Rating(**rating) for rating in rated]) if rated else "  nothing could be judged"
    if "implicit_accuracy_heldout" in facts:
        yield f"implicit accuracy on held-out pairs: {facts['implicit_accuracy_heldout']:.4f}{_pairs(facts.get('heldout_pairs'))}"


def _pairs(counts: Mapping[str, Any] | None) -> str:
    """Return how many pairs an accuracy is of."""
    if counts is None:
        return ""
    return f" ({counts['right']} right, {counts['wrong']} wrong, {counts['tied']} tied, p {counts['sign_test_p']:.2g})"


def _table(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for every run and scorer, and what became of the questions of judges."""
    from diffalign.rewards.shards import audited  # torch takes seconds to import

    standings = {scorer["name"]: standing(scorer) for scorer in facts.get("scorers", [])}
    for run in facts.get("runs", [])[1:]:
        yield f"{run['name']} against {facts['runs'][0]['path']}, {facts['prompts']} prompts:"
        for one in facts["comparisons"]:
            if one["run"] == run["name"]:
                yield f"  {one['scorer']:14} {_comparison(one)}  ({standings[one['scorer']]})"
    for scorer in facts.get("scorers", []):
        if scorer.get("audit"):
            yield f"{scorer['name']}: {audited(scorer['audit'])}"


def _comparison(one: Mapping[str, Any]) -> str:
    """Return verdict, win rate, sign test and change of one comparison."""
    if one["win_rate"] is None:
        return "no image could be judged"
    spread = "no interval" if None in one["ci95"] else f"{one['ci95'][0]:.3f} to {one['ci95'][1]:.3f}"
    gained = "" if None in one["change_ci95"] else f" ({one['change_ci95'][0]:+.3f} to {one['change_ci95'][1]:+.3f})"
    clear = {"win": "clear win", "loss": "clear loss", "unclear": "no clear win"}[one["verdict"]]
    return f"win rate {one['win_rate']:.3f} ({spread})  {record(one)}  change {one['change']:+.3f}{gained}  {clear}"
