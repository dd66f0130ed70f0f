"""`diffalign data ches`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from diffalign.core.errors import ConfigError

ABOUT = "score pairs of texts by how alike a model sees them"
HELP = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Score pairs of texts by how alike a language model sees their answers (CHES, 2410.08847): of those with large scores training would
    make the preferred answer less likely. Train on the rest with the transform {lowest: {score: ln_ches, share: 0.5}}."""

    dataset_name: str
    """Preference table with pairs or rankings of texts."""
    output_dir: str
    """Folder of the new table, whose preferred candidates have the scores ches and ln_ches."""
    pretrained_model_name_or_path: str = "assets/tiny-lm"
    """The model to be trained: a folder or hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    max_length: int = 1024
    """Most tokens of prompt and completion together; what is longer is cut or left out as in training."""
    chat_template: str | None = None
    """A Jinja file for conversations, where the tokenizer brings no template of its own."""


def run(config: CONFIG) -> int:
    """Write a table of pairs with the scores `ches` and `ln_ches`, and say where it lies."""
    from diffalign.data.table import is_table, write_table

    if not is_table(config.dataset_name):
        raise ConfigError(f"{config.dataset_name}: not a table; make one with `diffalign data import`")
    if Path(config.output_dir).resolve() == Path(config.dataset_name).resolve():
        raise ConfigError(f"`output_dir` is {config.output_dir}, the table itself; expected the folder of a new one")
    import torch

    from diffalign.methods.builders import text
    from diffalign.methods.builders.data import open_dataset
    from diffalign.methods.checks import check
    from diffalign.methods.config import TrainConfig
    from diffalign.models.text.ches import scored

    training = TrainConfig(**asdict(config), method="dpo", transforms=["pairs", "orient"], overwrite_output_dir=True)
    recipe = check(training)
    data = text.pairs(training, recipe, open_dataset(training, recipe))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = text.backbone(training, device)
    table = write_table(Path(config.output_dir), scored(data, model.read, model.network, device))
    span = table.manifest["scores"]["ln_ches"]
    print(f"{len(table)} pairs with ches and ln_ches ({span['min']:.3g} to {span['max']:.3g}): {table.path}")
    print("train on those least likely to be displaced with --transforms [orient, {lowest: {score: ln_ches, share: 0.5}}]")
    return 0
