"""`diffalign user embed`."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run

ABOUT = "write the file of a user, or of many, for a personalised run"
HELP = """what is done about
  no pairs                  refused: at least one pair with a preference; pictures without a user are drawn by the base
  one pair                  used, with a warning: it shows little of a taste; four show much more, and the order does not matter
  contradicting pairs       the same two images preferred both ways: used, named in a warning; the set encoder lets them cancel
  an image that is broken   refused, with its row
  a user not trained on     served from their pairs by the encoders pairs, vlm and mixture; one_hot serves its training users alone
  a file of another run     refused where it is used: tokens mean nothing to another encoder
examples:
  diffalign user embed --output_dir outputs/ppd --dataset_name ann.csv --destination ann.safetensors
  diffalign user embed --output_dir outputs/ppd --dataset_name votes --user_id ann --max_pairs 4 --destination ann.safetensors
  diffalign user embed --output_dir outputs/ppd --dataset_name votes --destination users        (a file for each user)
  diffalign user embed --output_dir outputs/sliders --sliders '{brightness: 0.8}' --destination bright.safetensors
  diffalign eval --output_dir outputs/ppd --prompts prompts.txt --user ann.safetensors
in Python:
  diffalign.load("outputs/ppd").for_user("ann.safetensors")("a red star").images[0]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Turn the choices of a user into a file of a few kB (encoder vlm: some 100 kB), with which a personalised run draws for them."""

    output_dir: str
    """Folder of a finished `diffalign train` run of ppd."""
    destination: str
    """File to write, name.safetensors; for several users a folder, which gets a file for each."""
    dataset_name: str | None = None
    """Pairs that the user has chosen from: preference table, dataset file, folder, or hub id. Columns: prompt, chosen and rejected
    (images), or image_0, image_1 and label_0 (1 where the first is preferred); user_id, where there are several users."""
    dataset_split_name: str | None = None
    """Split of the dataset, for example train."""
    reader: str | None = None
    """Layout of the dataset; found by its columns if not given."""
    user_id: str | None = None
    """Whose pairs of the dataset; all its users if not given."""
    max_pairs: int | None = None
    """Read only the first so many pairs of a user."""
    profile: str | None = None
    """Instead of pairs, for a run with user_encoder profile: a text about the user."""
    sliders: dict[str, float] = field(default_factory=dict)
    """Instead of pairs, for a run with user_encoder slider: {brightness: 0.8}, from 0, lowest, to 1; those left out are off."""
    overwrite: bool = False
    """Replace files that are there already."""
    device: str | None = None
    """Where to run, for example cuda; a GPU if there is one."""


def run(config: CONFIG) -> int:
    """Write the users' files and say where they lie."""
    if sum(map(bool, (config.dataset_name is not None, config.profile is not None, config.sliders))) != 1:
        raise ConfigError("`diffalign user embed` needs one of --dataset_name, with a user's pairs, --profile, a text, and --sliders")
    if config.dataset_name is None and (config.user_id is not None or config.max_pairs is not None):
        raise ConfigError("`profile` and `sliders` are without any pairs; leave out --user_id and --max_pairs")
    if config.max_pairs is not None and config.max_pairs < 1:
        raise ConfigError(f"`max_pairs` is {config.max_pairs}; expected at least one pair")
    Run.open(config.output_dir)
    import torch

    from diffalign.infer.embed_users import embed_profile, embed_sliders, embed_users

    options = {"overwrite": config.overwrite, "device": config.device or ("cuda" if torch.cuda.is_available() else "cpu")}
    if config.profile is not None:
        print(embed_profile(config.output_dir, config.profile, config.destination, **options))
        return 0
    if config.sliders:
        print(embed_sliders(config.output_dir, config.sliders, config.destination, **options))
        return 0
    pairs = {"reader": config.reader, "split": config.dataset_split_name, "user_id": config.user_id, "max_pairs": config.max_pairs}
    for file in embed_users(config.output_dir, config.dataset_name or "", config.destination, **pairs, **options):
        print(file)
    return 0
