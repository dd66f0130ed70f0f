"""The way from the command line to the first step: short, and each check is made once."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from diffalign.cli.main import main
from diffalign.train.step import preference_step
from tests.paths import CONFIGS

PACKAGE = str(Path(sys.modules["diffalign"].__file__ or "").parent)
CHECKS = str(Path("methods") / "checks.py"), str(Path("methods") / "packages.py"), str(Path("backbones") / "folders.py")
EACH = ("_check_weights", "check_sides")  # of each part of the model, and of each size


class Walk:
    """Counts the calls of checks, and keeps the functions that stand between the command line and the first step."""

    def __init__(self) -> None:
        self.checks: Counter[str] = Counter()
        self.hops: list[str] = []

    def __call__(self, frame, event, _) -> None:
        code = frame.f_code
        if event != "call" or self.hops or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name.lstrip("_").startswith("check") and code.co_filename.endswith(CHECKS):
            self.checks[code.co_name] += 1
        if code is preference_step.__code__:
            while frame is not None:
                if frame.f_code.co_filename.startswith(PACKAGE):
                    self.hops.append(frame.f_code.co_name)
                frame = frame.f_back


def test_twelve_hops_lead_to_the_first_step_and_each_check_is_made_once(micro_sd, pairs_file, tmp_path):
    words = ["train", "--config", str(CONFIGS / "tiny" / "diffusion_dpo.yaml"), "--dataset_name", str(pairs_file)]
    words += ["--pretrained_model_name_or_path", str(micro_sd), "--output_dir", str(tmp_path / "run"), "--max_train_steps", "1"]
    walk = Walk()
    sys.setprofile(walk)
    try:
        assert main(words) == 0
    finally:
        sys.setprofile(None)
    assert walk.hops[-1] == "main"
    assert len(walk.hops) <= 12, walk.hops
    twice = {name: count for name, count in walk.checks.items() if count > 1 and name not in EACH}
    assert not twice
    assert {"check", "check_keys", "check_model", "check_folder", "check_output", "check_image"} <= walk.checks.keys()
