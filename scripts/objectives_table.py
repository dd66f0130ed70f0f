"""Writes docs/objectives.md from the tables of objectives and methods: what each computes, needs, and where it comes from.

python -m scripts.objectives_table            write the file
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from diffalign.methods import METHODS
from diffalign.objectives import OBJECTIVES
from diffalign.objectives.base import Source
from diffalign.rewards.heads.table import NETWORKS

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

COMPOSITIONS = """
## Online, and what it is made of

Advantages, which objectives read as the column `advantage`, come from the loop of online training (`advantages`, `combine`) or, of a
table's scores, from the transforms `advantage` and `combined`. The words are those above; *golden* is `tests/golden/data/online`, and
*golden, run* says that the release's own function was run on these inputs, too, when they were made. No method as a whole was compared
with a training of its release.

| in the field | here | it is | checked against |
| --- | --- | --- | --- |
"""
# By its name in the field: what it is here, where that is from, and what it is checked against.
COMPOSED = (
    (
        "AWM",
        "`awm` with `reference: old_policy`, `old_policy_decay: {uprate: 0.001, uphold: 0.3}`",
        "release",
        "golden; its log-likelihood: golden, run",
    ),
    (
        "DGPO",
        "`dgpo` with `reference: old_policy`",
        "release; the paper compares two parts of a group",
        "golden, run",
    ),
    (
        "DiffusionNFT",
        "`diffusion_nft` with `rollout_policy: reference`, and that reference with a decay",
        "paper; `space: adaptive` is the release's",
        "golden",
    ),
    (
        "online DPO",
        "`dpo` on the best and the worst: transforms `[{pairs: {how: best_worst}}, orient]`",
        "release",
        "TRL, golden",
    ),
    (
        "online RankDPO",
        "`rank_dpo` with `reference: old_policy`",
        "variant: RankDPO is offline, and its loss reconstructed",
        "golden",
    ),
    (
        "Diffusion-SDPO (2511.03317)",
        "`sdpo_mu` with any objective of pairs; `sdpo_scale: batch`",
        "release; `pair`, the default, is ours",
        "golden, run",
    ),
    (
        "DDPO",
        "`clipped_ratio: {low: 1e-4}` with `rollout: ddim`",
        "release; the last step is left out",
        "golden, run; diffusers' DDIMScheduler",
    ),
    (
        "Flow-GRPO",
        "the same with `rollout: flow_sde`, or `cps` as its fast recipes",
        "release; the KL is the paper's, `kl_times_duration` the release's",
        "golden; the steps: golden, run",
    ),
    (
        "DanceGRPO",
        "the same with `rollout: dance`",
        "release; it trains a random 60% of the steps",
        "golden; the steps: golden, run",
    ),
    (
        "MixGRPO",
        "the same with a window: `size`, `stay`, `move` in `rollout`",
        "release; but for its shorter stays and DPM-Solver behind the window",
        "golden; the window: golden, run",
    ),
    (
        "BranchGRPO",
        "the same with `rollout: {branch: {...}}`",
        "release; defaults and pruning by width differ ([how](methods/online.md#trees))",
        "golden; values and advantages: golden, run",
    ),
    (
        "GRPO-Guard",
        "the same with `trust: guard`, low 2e-6 or 4e-6, `over_duration: true`",
        "release",
        "golden",
    ),
    (
        "Flow-DPPO",
        "the same with `trust: gate`",
        "release",
        "golden",
    ),
    (
        "D3PO",
        "`clipped_dpo` with `rollout: ddim`, transforms `[{pairs: {how: best_worst}}, orient]`; else a variant",
        "release",
        "golden",
    ),
    (
        "GRPO of texts",
        "`clipped_ratio: {low: 0.2}`; TRL's default `dapo` with `normaliser: batch`",
        "release",
        "TRL, golden",
    ),
    (
        "GSPO",
        "`clipped_ratio: {low: 3e-4, high: 4e-4, level: sequence}`",
        "release",
        "TRL, golden",
    ),
    (
        "Dr. GRPO",
        "`clipped_ratio: {low: 0.2, normaliser: fixed, length: L}`",
        "release",
        "TRL, golden",
    ),
    (
        "advantages of Flow-GRPO, NFT, AWM, DGPO",
        "`advantages: {}` (global deviation, eps 1e-4, clip 5)",
        "release; equal groups are zero exactly",
        "golden, run",
    ),
    (
        "those of DanceGRPO, MixGRPO",
        "`{spread: group, ddof: 1, eps: 1e-8}`",
        "release",
        "golden",
    ),
    (
        "TRL's",
        "`{spread: group, ddof: 1, clip: null}`",
        "release",
        "golden",
    ),
    (
        "Dr. GRPO's",
        "`{spread: none, clip: null}`",
        "paper",
        "golden",
    ),
    (
        "several rewards",
        "`combine: weighted`, `standardised`, `gdpo`, `cfo`",
        "release",
        "golden",
    ),
    (
        "several rewards",
        "`combine: log_sigmoid`, `lagrange`, `maxmin`",
        "reconstructed from abstracts",
        "golden",
    ),
    (
        "dynamic reward weighting",
        "`combine: gradient`; `hypervolume` is a plain form of ours",
        "release; rewards are standardised before they are added",
        "hand",
    ),
    (
        "solver times of a rollout",
        "those of the stock pipeline of the model",
        "",
        "diffusers' schedulers",
    ),
)

METHODS_HEAD = """## Methods

What a method is as it stands, with no part replaced in the config. The same words as above say how near it is to its paper.

| method | what it is | paper | it is | checked against |
| --- | --- | --- | --- | --- |
"""


def row(name: str) -> str:
    """Return the line of an objective."""
    objective = OBJECTIVES[name]
    facts, doc = objective.facts, inspect.getdoc(objective.loss) or ""
    about = " ".join(doc.split("\n\n")[0].split()).removeprefix("Return ").replace("|", "\\|")
    papers = [f"[{number}](https://arxiv.org/abs/{number})" for number in dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", doc))]
    keywords = [p for p in inspect.signature(objective).parameters.values() if p.kind is p.KEYWORD_ONLY]
    constants = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in keywords]
    needs = [f"{facts.candidates} candidates"] if facts.candidates != 2 else []
    needs += [f"score `{column}`" for column in facts.columns] + [f"token {field}" for field in facts.tokens]
    needs += [f"score `{column}` if named" for column in facts.optional]
    needs += ["mismatched answers"] if facts.mismatched else []
    needs += ["outputs of policy and reference"] if facts.residuals else []
    cells = [f"`{name}`", about, ", ".join(papers), provenance(objective.source), ", ".join(constants)]
    cells += [facts.diffusion, "yes" if facts.reference else "no", ", ".join(needs)]
    return f"| {' | '.join(cells)} |"


def provenance(source: Source) -> str:
    """Return the cells that say where a formula comes from and what it is checked against."""
    return (
        f"{source.origin}; {source.note} | {', '.join(source.checks)}" if source.note else f"{source.origin} | {', '.join(source.checks)}"
    )


def method_row(name: str) -> str:
    """Return the line of a method."""
    method = METHODS[name]
    described = sys.modules.get(f"diffalign.methods.{name}") or NETWORKS[name.removeprefix("reward_")]  # by the paper's file, or its head
    about = (inspect.getdoc(described) or "").split("\n\n")[0].replace("\n", " ")
    return f"| `{name}` | {about} | [{method.paper}](https://arxiv.org/abs/{method.paper}) | {provenance(method.source)} |"


def table() -> str:
    """Return the whole file."""
    composed = "".join(f"| {' | '.join(cells)} |\n" for cells in COMPOSED)
    return (
        HEAD
        + "\n".join(map(row, OBJECTIVES))
        + "\n"
        + COMPOSITIONS
        + composed
        + "\n"
        + METHODS_HEAD
        + "\n".join(map(method_row, METHODS))
        + "\n"
    )


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
