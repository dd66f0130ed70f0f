"""Copies the personalised run of bench_personal.py into the embedded model, with a card of what personal_clicks.py measured.

python -m scripts.bench_personal --root outputs/personal --seeds 0 --runs pairs_narrow --shots 4       half an hour on two cores
python -m scripts.personal_asset --root outputs/personal --destination assets/tiny-sd/personal
python -m scripts.personal_clicks --root outputs/personal --run assets/tiny-sd/personal                a quarter of an hour
python -m scripts.personal_asset --root outputs/personal --destination assets/tiny-sd/personal         once more, for the card
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import auto_cli

from diffalign.core import tensor_files
from diffalign.core.runs import CONFIG, RUN
from diffalign.models.users.store import BRANCH, ENCODER
from scripts.personal_clicks import ACTIVE, CLICKS, DRAWN, RANDOM

TRAINED = Path("seed-0", "pairs_narrow")
CARD = """---
license: apache-2.0
library_name: diffusers
base_model: assets/tiny-sd
---
# tiny-sd/personal: pictures in one person's taste

A user branch (PPD, encoder `pairs`) on [tiny-sd](../README.md), which draws for somebody of whom it has seen a few choices
between two pictures. The page Yours of `diffalign app` draws with it, and so does

```python
import diffalign

run = diffalign.load("assets/tiny-sd/personal")
```

with `run.for_user(...)`, as in [Pictures for one person](../../../docs/tasks/personalise.md).

Trained on the votes of 240 simulated users, each a random direction over four tastes (warm colours, large shapes, bright
backgrounds, high places): [the world of its users](../../personal/README.md). {steps} steps of 32 pairs, beta 700, seed 0. The
branch is kept in half precision. Made by

<!-- not run: an hour -->
```bash
python -m scripts.bench_personal --root outputs/personal --seeds 0 --runs pairs_narrow --shots 4
python -m scripts.personal_asset --root outputs/personal --destination assets/tiny-sd/personal
python -m scripts.personal_clicks --root outputs/personal --run assets/tiny-sd/personal
```

## What we measured

50 users whom the training has not seen click through the page's own code. Then 8 pictures for each of them, at held-out
prompts, are judged by their own taste against nobody's pictures of the same noise; 95 % intervals over users.

{drawn}
"""
TOLD = """
And without drawing, of {users} further unseen users, {seeds} times: the share of a user's preferences between two pictures of one
prompt that the run tells right; the interval of the gain is over users.

{rows}

How sure visitors are taken to be of their choices (`SURENESS` in `diffalign/app/studio.py`) was chosen on these users, and not on
the 50 above. Where an interval holds zero, active pairs are not shown to be better.
"""


def main(root: Path, destination: Path) -> None:
    """Write the files of the run, and the card once there are numbers.

    Args:
        root: folder of bench_personal.py.
        destination: folder to write.
    """
    run, given = root / TRAINED, "outputs/personal"  # not where it lay on the machine that made it
    destination.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / ENCODER, destination / ENCODER)
    tensors, facts = tensor_files.read(run / BRANCH)
    tensor_files.write(destination / BRANCH, {name: value.to(torch.float16).contiguous() for name, value in tensors.items()}, facts)
    places = {"dataset_name": f"{given}/table", "output_dir": f"{given}/{TRAINED}"}
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    (destination / CONFIG).write_text(yaml.safe_dump(config | places, sort_keys=False), encoding="utf-8")
    facts = json.loads((run / RUN).read_text(encoding="utf-8"))
    facts |= {name: value for name, value in places.items() if name in facts}
    (destination / RUN).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if (root / "clicks.json").exists():
        found = json.loads((root / "clicks.json").read_text(encoding="utf-8"))
        (destination / "README.md").write_text(card(found, config["max_train_steps"]), encoding="utf-8")


def card(found: dict[str, Any], steps: int) -> str:
    """Return the card with the numbers of clicks.json, as far as they are there."""
    names = {f"{strategy}-{count}": f"{count} clicks, {strategy} pairs" for count in DRAWN for strategy in (ACTIVE, RANDOM)}
    drawn = [
        _row(label, [f"{one['win_rate']:.3f} ({one['ci95'][0]:.3f} to {one['ci95'][1]:.3f})", f"{one['adherence']:.3f}"])
        for name, label in names.items()
        if (one := found.get(name))
    ]
    text = CARD.format(
        steps=steps, drawn="\n".join([_row("", ["against nobody's pictures", "adherence to the prompt"]), "| --- | --- | --- |", *drawn])
    )
    return text + (_told(found["told"]) if "told" in found else "")


def _told(found: dict[str, Any]) -> str:
    counts = [str(count) for count in CLICKS]
    rows = [_row("clicks", counts), "| --- |" + " --- |" * len(counts)]
    rows += [_row(f"{name} pairs", [f"{found[name][count]:.3f}" for count in counts]) for name in (ACTIVE, RANDOM)]
    gains = [found["gain"][count] for count in counts]
    rows.append(_row("gain", [f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in gains]))
    return TOLD.format(users=found["users"], seeds=found["seeds"], rows="\n".join(rows))


def _row(head: str, cells: list[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
