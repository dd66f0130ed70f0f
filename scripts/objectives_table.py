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
config maps names), fields of `Tokens`.

It is: the paper's formula (*paper*), that of released code (*release*: the authors', or that of a library which the docstring names), ours
from memory or from a description (*reconstructed*), or another one on purpose (*variant*). Checked against: TRL's own code, loss and
gradient on one model (*TRL*); numbers restated in numpy apart from this package (*golden*); arithmetic written out in a test (*hand*).

| name | loss of a record | papers | it is | checked against | constants | images | reference | needs |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(name: str) -> str:
    """Return the line of an objective."""
    objective = OBJECTIVES[name]
    facts, source, doc = objective.facts, objective.source, inspect.getdoc(objective.loss) or ""
    about = " ".join(doc.split("\n\n")[0].split()).removeprefix("Return ").replace("|", "\\|")
    papers = [f"[{number}](https://arxiv.org/abs/{number})" for number in dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", doc))]
    keywords = [p for p in inspect.signature(objective).parameters.values() if p.kind is p.KEYWORD_ONLY]
    constants = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in keywords]
    needs = [f"{facts.candidates} candidates"] if facts.candidates != 2 else []
    needs += [f"score `{column}`" for column in facts.columns] + [f"token {field}" for field in facts.tokens]
    needs += [f"score `{column}` if named" for column in facts.optional]
    needs += ["mismatched answers"] if facts.mismatched else []
    origin = f"{source.origin}; {source.note}" if source.note else source.origin
    cells = [f"`{name}`", about, ", ".join(papers), origin, ", ".join(source.checks), ", ".join(constants)]
    cells += [facts.diffusion, "yes" if facts.reference else "no", ", ".join(needs)]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the whole file."""
    return HEAD + "\n".join(map(row, OBJECTIVES)) + "\n"


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
