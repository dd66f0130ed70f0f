"""What `diffalign score` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffalign.core.specs import Spec

SCORES = """scorers (weights from the hub, or from a local file or folder by {pickscore: {model: PATH}}):
  pickscore    PickScore; compares images of one prompt         clipscore    CLIPScore; 2.5 times the cosine, not below zero
  hps          HPSv2.1, or {hps: {version: "2.0"}}              aesthetic    LAION's predictor v2; reads no prompt
  imagereward  ImageReward; reads 35 tokens of a prompt         mps          MPS, its overall score
  {vqascore: {model: Qwen/Qwen2.5-VL-3B-Instruct}}              chance of Yes, by a vision-language model; reads long prompts
  adherence, {taste: {name: high}}                              the embedded world's judges
  {trained: {path: RUN}}                                        your own run of reward_bt; of reward_pal for the average user, or with
                                                                user: ID, or user: FILE with pairs of somebody new
  {function: {path: "file.py:name"}}                            your own function of (images, prompts): a number an image
  {http: {url: "http://...", name: mine}}                       your own server: POST {"prompts": [...], "images": [PNG in base64, ...]},
                                                                answer {"scores": [...]}, null for what it cannot judge
examples:
  diffalign score --dataset_name votes --scorers pickscore '{hps: {version: "2.1"}}' --output_dir votes-scored
  diffalign score --images outputs/pictures --scorers aesthetic --output_dir scored
  diffalign score --images logos --prompts "a red fox" "a fox logo" --scorers clipscore --output_dir scored
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """Score images by reward models: of a preference table or dataset, or of a folder. Gives a table with a named score of each image,
    which transforms and objectives read. The same command goes on after a kill."""

    output_dir: str
    """Folder of the new table."""
    scorers: list[Spec] = field(default_factory=list)
    """Scorers by name, constants as {hps: {version: "2.0"}}; one is in memory at a time."""
    dataset_name: str | None = None
    """Preference table, dataset file, folder of pairs, or hub id; its images are scored under their prompts."""
    dataset_split_name: str | None = None
    """Split of that dataset, for example train."""
    reader: str | None = None
    """Layout of that dataset; found by its columns if not given."""
    images: str | None = None
    """Instead, a folder of images. Their prompts are in name.txt beside each or in metadata.jsonl (file_name, text)."""
    prompts: list[str] = field(default_factory=list)
    """With `images`: score every image under every one of these prompts, or those of a file, a line or row each."""
    device: str | None = None
    """Where to run, for example cuda; a GPU if there is one."""
    overwrite: bool = False
    """Replace a table that lies in output_dir."""
