"""Writes docs/objectives.md from the table of objectives: what each is called, computes and needs.

python -m scripts.objectives_table            write the file
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from diffalign.objectives import OBJECTIVES

FILE = Path(__file__).resolve().parents[1] / "docs" / "objectives.md"
HEAD = """# Objectives

Made by `python -m scripts.objectives_table`. In a config: `objective: NAME`, or `{NAME: {constant: value}}`; in Python
`diffalign.OBJECTIVES[NAME](scores, ...)`, a loss a record. LN-DPO is `dpo` with `likelihood: mean`, LD-DPO with `{ld_dpo: {alpha: 0.5}}`,
DOVE with `joint`; IPO as TRL computes it is `ipo` with `mean`, SimPO `simpo` with `mean`; conservative DPO is `label_smoothing`.

Images: V as it is, V+ with the denoising error as negative log-likelihood, R without a reference (constants are of another scale),
L lists of images under one noise, N not at all. Needs: candidates a record where more than two, scores of the candidates (`scores` in a
config maps names), fields of `Tokens`. Reconstructed: not confirmed by released code, or only in part; the docstring says what.

| name | loss of a record | source | constants | images | reference | needs |
| --- | --- | --- | --- | --- | --- | --- |
"""


def row(name: str) -> str:
    """Return the line of an objective."""
    function, needed = OBJECTIVES[name].loss, OBJECTIVES[name].facts
    said = inspect.getdoc(function) or ""
    about = " ".join(said.split("\n\n")[0].split()).removeprefix("Return ").replace("|", "\\|")
    papers = [f"[{number}](https://arxiv.org/abs/{number})" for number in dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", said))]
    papers += ["reconstructed"] if "econstructed" in said else []
    given = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    constants = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in given]
    asked = [f"{needed.candidates} candidates"] if needed.candidates != 2 else []
    asked += [f"score `{column}`" for column in needed.columns] + [f"token {field}" for field in needed.tokens]
    asked += [f"score `{column}` if named" for column in needed.optional]
    asked += ["mismatched answers"] if needed.mismatched else []
    compared = "yes" if needed.reference else "no"
    cells = [f"`{name}`", about, ", ".join(papers), ", ".join(constants), needed.diffusion, compared, ", ".join(asked)]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the whole file."""
    return HEAD + "\n".join(map(row, OBJECTIVES)) + "\n"


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
