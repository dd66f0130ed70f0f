"""How well a small vision-language model judges held-out pairs: python -m scripts.prove_vlm --model outputs/tiny-vlm

Pairs of drawings of withheld scenes, to captions of one of the two: `near`, whose drawings differ in one attribute that the caption names,
and `far`, of any two scenes of which the caption's fits better. The labels are the exact judge's. Each table is imported, scored by marks
and by verdicts, in JSON and by the first token, and compared with the labels, by the commands that a user would give.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import auto_cli

from diffalign.cli.main import main as diffalign
from diffalign.data.world.captions import full_caption, random_caption
from diffalign.data.world.judge import adherence, read
from diffalign.data.world.scenes import ATTRIBUTES, Scene, render, withheld_scenes

KINDS = ("near", "far")


def scene_beside(scene: Scene, prompt: str, kind: str, rng: np.random.Generator, withheld: list[Scene]) -> Scene:
    """Return the scene to compare with: of another value in one attribute of the prompt, or any withheld one."""
    if kind == "far":
        return withheld[rng.integers(len(withheld))]
    own = scene.attributes()
    name = str(rng.choice([name for name, value in own.items() if value in prompt.split()]))
    return Scene(**own | {name: str(rng.choice([value for value in ATTRIBUTES[name] if value != own[name]]))})


def pairs(kind: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows in the layout of Pick-a-Pic, each of another caption, with pairs that the exact judge tells apart."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    withheld, prompts = sorted(withheld_scenes(), key=full_caption), set()
    while len(prompts) < count:
        scene = withheld[rng.integers(len(withheld))]
        prompt = random_caption(scene, rng)
        other = scene_beside(scene, prompt, kind, rng, withheld)
        shown = [render(own, rng) for own in ((scene, other) if rng.random() < 0.5 else (other, scene))]
        first, second = (adherence(prompt, read(picture)) for picture in shown)
        if prompt not in prompts and first != second:
            prompts.add(prompt)
            files = [io.BytesIO(), io.BytesIO()]
            for picture, file in zip(shown, files, strict=True):
                picture.save(file, "PNG")
            pictures = {f"jpg_{side}": file.getvalue() for side, file in enumerate(files)}
            yield {"caption": prompt, **pictures, "label_0": float(first > second)}


def main(model: str = "outputs/tiny-vlm", count: int = 300, seed: int = 1000, root: str = "outputs/vlm") -> None:
    """Score and compare, and print what the commands do.

    Args:
        model: folder of the model, as pretrain_tiny_vlm.py writes it.
        count: pairs of each kind.
        seed: of the pairs.
        root: folder of tables and of the model's answers.
    """
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    judge = f"model: {model}, aspects: [alignment], cache: {folder / 'judges.db'}, concurrency: 32"
    kinds = [(protocol, answer) for protocol in ("pointwise", "pairwise") for answer in ("json", "logprobs")]
    scorers = [f"{{vlm: {{{judge}, name: {protocol}_{answer}, protocol: {protocol}, answer: {answer}}}}}" for protocol, answer in kinds]
    for kind in KINDS:
        pq.write_table(pa.Table.from_pylist(list(pairs(kind, count, seed))), folder / f"{kind}.parquet")
        table, scored = str(folder / kind), str(folder / f"{kind}-scored")
        print(f"\n{kind}:", flush=True)
        for command in (
            ["data", "import", "--dataset_name", f"{table}.parquet", "--output_dir", table, "--overwrite"],
            ["score", "--dataset_name", table, "--output_dir", scored, "--overwrite", "--scorers", *scorers],
            ["eval", "agreement", "--dataset_name", scored, "--destination", f"{table}.json"],
        ):
            diffalign(command)


if __name__ == "__main__":
    auto_cli(main)
