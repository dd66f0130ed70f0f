"""`diffalign score`."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.core.errors import ConfigError
from diffalign.core.specs import Spec
from diffalign.rewards.names import check_scorer_names

if TYPE_CHECKING:
    from diffalign.data.table import Table

ABOUT = "score images by reward models"
HELP = """scorers (weights from the hub, or from a local file or folder by {pickscore: {model: PATH}}):
  pickscore    PickScore; compares images of one prompt         clipscore    CLIPScore; 2.5 times the cosine, not below zero
  hps          HPSv2.1, or {hps: {version: "2.0"}}              aesthetic    LAION's predictor v2; reads no prompt
  imagereward  ImageReward; reads 35 tokens of a prompt         mps          MPS, its overall score
  {hpsv3: {instruction: FILE.txt}}                              HPSv3; its instruction is a file, with {prompt} and <|Reward|> in it
  {vqascore: {model: Qwen/Qwen2.5-VL-3B-Instruct}}              chance of Yes, by a vision-language model; reads long prompts
  adherence, {taste: {name: high}}                              the embedded world's judges
  {look: {name: brightness}}                                    or contrast, saturation, warmth, sharpness, high_frequency, pixel_grid
  {trained: {path: RUN}}                                        your own run of reward_bt; of reward_pal for the average user, or with
                                                                user: ID, or user: FILE with pairs of somebody new
  {implicit: {path: RUN}}                                       any other run: beta times its log-ratio to its base, over draws: 10; of a
                                                                language model's run also of a table of texts
  {function: {path: "file.py:name"}}                            your own function of (images, prompts): a number an image
  {http: {url: "http://...", name: mine}}                       your own server: POST {"prompts": [...], "images": [PNG in base64, ...]},
                                                                answer {"scores": [...]}, null for what it cannot judge
  {vlm: {model: NAME, url: "http://host:8000/v1"}}              a vision-language model, on a server with an OpenAI-style chat endpoint
                                                                (vLLM, llama.cpp, Ollama, a cloud; key in DIFFALIGN_KEY_VLM), or without
                                                                url of transformers: a mark for each image by aspects: [alignment, quality,
                                                                aesthetics, safety], or protocol: pairwise for the share of its prompt's
                                                                other images that it beats, in both orders; answer: json or logprobs;
                                                                template: aspects, visionprefer, unified_reward or FILE.txt
  {tools: {detector: {transformers: {model: NAME}}}}            share of what the prompt asks for (things, numbers, colours, places, a text)
                                                                that tools find; detector: world, a function or a server, reader: rapidocr
  {combined: {scorers: [hps, clipscore], how: product}}         one score of several: weighted, standardised (the default), log_sigmoid,
                                                                product, lagrange or cfo, with constants as {weighted: {weights: {hps: 2}}},
                                                                or {prompt_weights: {path: RUN}} of a run of reward_orchestrator
  {people: {path: votes.db}}                                    people, on the page of diffalign app: the share of its comparisons that a
                                                                picture wins against others of its prompt
examples:
  diffalign score --dataset_name votes --scorers pickscore '{hps: {version: "2.1"}}' --output_dir votes-scored
  diffalign score --images outputs/pictures --scorers aesthetic --output_dir scored
  diffalign score --images logos --prompts "a red fox" "a fox logo" --scorers clipscore --output_dir scored
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
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


def run(config: CONFIG) -> int:
    """Score, and say what the numbers mean and how they lie."""
    if (config.dataset_name is None) == (config.images is None):
        raise ConfigError("`diffalign score` needs --dataset_name with a table or dataset, or --images with a folder of images")
    if config.prompts and config.images is None:
        raise ConfigError("`prompts` are for --images; the images of a dataset have prompts of their own")
    check_scorer_names(config.scorers)
    import torch

    from diffalign.core.files import write
    from diffalign.core.processes import process_state
    from diffalign.evaluate.pages.evidence import names_of, page
    from diffalign.rewards.score_table import check, score_table
    from diffalign.rewards.shards import audited

    check(config.scorers, Path(config.output_dir), overwrite=config.overwrite)
    state = process_state()
    device = config.device or (str(state.device) if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="diffalign-") as folder:
        table = score_table(
            _opened(config, Path(folder) / "table"), config.output_dir, config.scorers, device=device, overwrite=config.overwrite
        )
    if not state.is_main_process:
        return 0
    for scorer in table.manifest["scorers"]:
        print(_line(table, scorer["name"], scorer["scale"], scorer["unjudged"]))
        if scorer.get("audit"):
            print(f"  {audited(scorer['audit'])}")
    if nameless := sum(len(record.candidates) for record in table if not record.prompt):
        print(f"{nameless} images have no prompt; scorers that read one were given an empty one")
    for name in names_of(table):
        file = table.path / f"evidence-{name}.html"
        write({file: page(table, name)})
        print(f"what {name} saw -> {file}")
    print(f"{len(table)} records -> {table.path}")
    return 0


def _opened(config: CONFIG, folder: Path) -> Table:
    """Return the table to score; what is none yet is read into `folder`."""
    from diffalign.data.importing import import_dataset
    from diffalign.data.prompts import prompts_of
    from diffalign.data.table import is_table, read_table, write_table

    if config.images is not None:
        from diffalign.rewards.folder import images_of

        return write_table(folder, images_of(config.images, prompts_of(config.prompts)), dataset_name=config.images)
    name = config.dataset_name or ""
    if is_table(name):
        return read_table(name)
    return import_dataset(name, folder, reader=config.reader, split=config.dataset_split_name)


def _line(table: Table, name: str, scale: str, unjudged: int) -> str:
    """Return mean and range of a score over the images that have it."""
    scores = [candidate.scores[name] for record in table for candidate in record.candidates if name in candidate.scores]
    left = f", {unjudged} not judged" if unjudged else ""
    if not scores:
        return f"{name}: no image could be judged{left} ({scale})"
    mean = math.fsum(scores) / len(scores)
    return f"{name}: mean {mean:.4f}, {min(scores):.4f} to {max(scores):.4f}, {len(scores)} images{left} ({scale})"
