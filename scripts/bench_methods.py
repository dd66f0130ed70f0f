# python -m scripts.bench_methods --rounds 5 --threads 2
"""Time of every method's step beside Diffusion-DPO's, with the inversion's points kept on disk and computed live; one run, in turns."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from diffalign.models.backbones.folders import resolve
from scripts.bench_step import TINY, Stepper, Variant, base_config, write_reduced_sd

PAIRS = ["pairs", "drop_ties", "orient"]  # SmPO without its soft label, which costs nothing in a step
RELEASED = {"ddim_inversion": {"steps": 5, "renoise": 1, "end": "grid", "driver": "policy"}}
VARIANTS = {
    "dpo": Variant("Diffusion-DPO"),
    "mapo": Variant("MaPO", {"method": "mapo", "beta": 0.1}),
    "inpo_kept": Variant("InPO, points kept", {"method": "inpo", "trajectory_cache": 1}),
    "inpo_live": Variant("InPO, live", {"method": "inpo"}),
    "smpo_kept": Variant("SmPO, points kept", {"method": "smpo", "transforms": PAIRS, "trajectory_cache": 1}),
    "smpo_live": Variant("SmPO, live", {"method": "smpo", "transforms": PAIRS}),
    "smpo_released": Variant("SmPO, live, as released", {"method": "smpo", "transforms": PAIRS, "trajectory": RELEASED}),
    "self_npo": Variant("Self-NPO (one picture a record)", {"method": "self_npo"}),
}


def bench(args: argparse.Namespace) -> str:
    """Return the table: median seconds of a step, and the median ratio to Diffusion-DPO's within a round."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.model == "reduced":
            write_reduced_sd(work / "sd")
        model, side = (str(work / "sd"), 128) if args.model == "reduced" else (resolve(TINY), 64)
        config = base_config(model, side, work, args)
        steppers = {name: Stepper(variant, config) for name, variant in VARIANTS.items()}
        rounds: list[dict[str, float]] = []
        for turn in tqdm(range(1 + args.rounds), desc="time (first round warms up)"):
            rounds.append({name: stepper.seconds(args.repeats if turn else 1) for name, stepper in steppers.items()})
    lines = [f"{args.model}, {args.pairs} pairs a step, {args.threads} threads", "| step | s | x Diffusion-DPO |", "| --- | --- | --- |"]
    for name, variant in VARIANTS.items():
        seconds = statistics.median(r[name] for r in rounds[1:])
        ratios: Any = sorted(r[name] / r["dpo"] for r in rounds[1:])
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(f"| {variant.label} | {seconds:.3f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["reduced", "tiny"], default="reduced")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="steps of each variant in a round, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    print(bench(args))


if __name__ == "__main__":
    main()
