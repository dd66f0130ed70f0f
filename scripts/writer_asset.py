"""Copies the trained prompt writer of a finished text quickstart into the embedded models, with a card of what was measured.

diffalign quickstart --text --output_dir outputs/quickstart_text
python -m scripts.writer_asset --folder outputs/quickstart_text --destination assets/tiny-lm/sem_dpo
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from jsonargparse import auto_cli

from diffalign.cli.demo.prompts import RUNS
from diffalign.core.runs import CONFIG, RUN

FILES = ("adapter_model.safetensors", "adapter_config.json", RUN)
CARD = """---
license: apache-2.0
library_name: peft
pipeline_tag: text-generation
base_model: assets/tiny-lm
---
# tiny-lm/sem_dpo: a prompt writer that learned a taste

A LoRA adapter of rank {rank} on [tiny-lm](../README.md), trained by DPO with Sem-DPO's weight of meaning on {pairs_train} pairs of
its own rewrites of short prompts: the taste `{taste}` judged the pictures that [tiny-sd](../../tiny-sd/README.md) drew from
them. The page Rewrite of `diffalign app` shows it beside tiny-lm, and so does

```bash
diffalign rewrite --prompts "a star" --images_per_prompt 2 --destination outputs/rewrites
```

Made by

<!-- not run: five minutes -->
```bash
diffalign quickstart --text --output_dir {output_dir}
python -m scripts.writer_asset --folder {output_dir} --destination assets/tiny-lm/sem_dpo
```

Measured on {prompts_heldout} short prompts that it was not trained on, each drawn once from the same noise by both writers; 95 % intervals,
bootstrapped over prompts:

| against tiny-lm | |
| --- | --- |
| wins by the taste `{taste}` | {win_rate:.3f} ({ci95[0]:.3f} to {ci95[1]:.3f}) |
| the same, of the {prompts_open} prompts that leave the taste open | {win_rate_open:.3f} ({ci95_open[0]:.3f} to {ci95_open[1]:.3f}) |
| taste, mean gain | {taste_gain:+.3f} ({taste_gain_ci95[0]:+.3f} to {taste_gain_ci95[1]:+.3f}) |
| share of the short prompt's attributes that the rewrite keeps | {kept_base:.3f} before, {kept_aligned:.3f} after |
| pairs not trained on that it ranks as the taste does | {implicit_accuracy_heldout:.3f} of {pairs_heldout} |
"""


def main(folder: Path, destination: Path) -> None:
    """Write the files of the run and the card.

    Args:
        folder: output_dir of a finished `diffalign quickstart --text`.
        destination: folder to write.
    """
    run, facts = folder / RUNS["aligned"], json.loads((folder / "report.json").read_text(encoding="utf-8"))
    destination.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(run / name, destination / name)
    named = facts | {"output_dir": "outputs/quickstart_text"}  # not where it lay on the machine that made it
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    config |= {"dataset_name": f"{named['output_dir']}/pairs", "output_dir": f"{named['output_dir']}/{run.name}"}
    (destination / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (destination / "README.md").write_text(CARD.format(**named), encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
