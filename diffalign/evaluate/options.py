"""The flags of `diffalign eval`, as a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffalign.core.keys import AT_LEAST_ONE, NOT_NEGATIVE, Kind, key
from diffalign.core.specs import Spec

PICTURES: tuple[Kind, ...] = ("image",)  # keys that mean nothing to a language model


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Compare a trained run, or several, with the base model by scorers not used in training: win rates with intervals, and an alarm
    where held-out scores or the look of pictures went wrong; and the implicit accuracy on unseen pairs."""

    output_dir: str
    """Folder of a finished `diffalign train` run. Its own base model is what all are compared with."""
    runs: list[str] = key([], kinds=PICTURES, uses=("drawn",))
    """More to compare: folders of finished runs, or pipelines (folder in diffusers layout, or hub id). NAME=PATH gives a name of its own;
    else it is the last part of the path. From three models on, the base counting, a Bradley-Terry table is made."""
    prompts: list[str] = field(default_factory=list)
    """Prompts, files or folders of prompts, or names of sets (partiprompts, geneval, hpsv2, pickapic, ...); each prompt counts once. Of an
    edit model a table with input pictures."""
    caption_column: str | None = None
    """Column of a table of prompts that holds them, if it is neither prompt nor caption."""
    max_prompts: int | None = key(None, kinds=PICTURES)
    """Take only so many of the prompts, drawn by `seed`."""
    images_per_prompt: int = key(2, AT_LEAST_ONE, kinds=PICTURES, uses=("how",))
    """Images of each prompt by each model; diversity needs at least two."""
    scorers: list[Spec] = key([], kinds=PICTURES, uses=("drawn",))
    """Judges, constants as {hps: {version: "2.0"}}; see `diffalign score --help`. If not given, those of pickscore, hps, imagereward,
    clipscore and aesthetic that were not used in training; where every prompt is a caption of the embedded world, adherence."""
    reward: Spec | None = key(None, kinds=PICTURES, uses=("drawn",))
    """The scorer that training optimised, for the alarm; if not given, what the files of the run tell."""
    taste: str | None = key(None, kinds=PICTURES, uses=("drawn",))
    """The same, where it is a taste of the embedded world: warm, large, centred, ..."""
    trust_scorers: bool = key(False, kinds=PICTURES, uses=("drawn",))
    """Judge also by the scorers of kind function and http that the runs' files name: they run code, or send prompts and pictures to a
    server. Those that `scorers` and `reward` name are used without this word."""
    visible_margin: float = key(0.5, NOT_NEGATIVE, kinds=PICTURES)
    """A win counts as one that can be seen if the prompt's score rises by more than so many standard deviations of the base's scores."""
    features: Spec = key("pixels", kinds=PICTURES)
    """Features that diversity is a distance of: pixels (CIELAB of 8 by 8 areas), or {clip: {model: ...}}."""
    destination: str | None = key(None, kinds=PICTURES)
    """Folder of the results; `eval` in output_dir if not given."""
    dataset_name: str | None = None
    """Labelled pairs not trained on, for the implicit accuracy of the run in output_dir."""
    dataset_split_name: str | None = None
    """Split of that dataset, for example test."""
    reader: str | None = None
    """Layout of that dataset; found by its columns if not given."""
    device: str | None = None
    """Where to run, for example cuda; a GPU if there is one."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = key(None, kinds=PICTURES)
    """Precision of all models; the one of the training if not given."""
    num_inference_steps: int = key(25, AT_LEAST_ONE, kinds=PICTURES, uses=("how",))
    """Denoising steps of every picture."""
    guidance_scale: float = key(5.0, kinds=PICTURES, uses=("how",))
    """Guidance of every picture."""
    positive: str | None = key(None, kinds=PICTURES, uses=("drawn",))
    """For a run of diffusion_npo or self_npo: the run it steers; it is then compared with plain guidance on that run."""
    alpha: float = key(1.0, kinds=PICTURES)
    """For such a run: how much of `positive` its branch keeps."""
    beta: float = key(1.0, kinds=PICTURES)
    """For such a run: its own weight."""
    user: str | None = key(None, kinds=PICTURES)
    """For a personalised run: the user it draws for, a file of `diffalign user embed`."""
    user_id: str | None = key(None, kinds=PICTURES)
    """For a personalised run, instead: a user of `pairs`, or one of the training (encoders one_hot and mixture)."""
    pairs: str | None = key(None, kinds=PICTURES)
    """For a personalised run, instead: a dataset with the choices of a user, of `user_id` if there are several."""
    sliders: dict[str, float] | None = key(None, kinds=PICTURES)
    """For a run with user_encoder slider, instead: {brightness: 0.8}, from 0, lowest, to 1; those left out are off."""
    seed: int = key(0, uses=("how",))
    """Seed of the pictures and of the intervals."""
    overwrite: bool = key(False, kinds=PICTURES)
    """Draw and score everything anew: where a scorer has changed that is no file, such as a server."""


VOTES = """votes:
  left     left, leftvote, model_a, a, 1, A>B      right   right, rightvote, model_b, b, 2, B>A
  a tie    tie, tievote, 0, A=B, [[C]]             bad     bothbad, bothbad_vote, tie (bothbad), A=B=Bad
  also as [[A>B]], [[A>>B]] or [[A]] at the end of a judge's answer; an empty cell is no vote
"""
