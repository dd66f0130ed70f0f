"""A misspelt name is refused at once: before torch is imported, which takes seconds."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("words", "name", "near"),
    [
        (["quickstart", "--taste", "hig"], "hig", "high"),
        (["quickstart", "--text", "--taste", "hig"], "hig", "high"),
        (["quickstart", "--method", "map"], "map", "mapo"),
        (["score", "--images", ".", "--output_dir", "o", "--scorers", "pickscor"], "pickscor", "pickscore"),
        (["score", "--images", ".", "--output_dir", "o", "--scorers", "{taste: {name: hig}}"], "hig", "high"),
        (["pairs", "generate", "--prompts", "a", "--output_dir", "o", "--scorers", "pickscor"], "pickscor", "pickscore"),
        (["eval", "--output_dir", "o", "--prompts", "a", "--scorers", "pickscor"], "pickscor", "pickscore"),
        (["eval", "--output_dir", "o", "--prompts", "a", "--reward", "pickscor"], "pickscor", "pickscore"),
        (["eval", "--output_dir", "o", "--prompts", "a", "--taste", "hig"], "hig", "high"),
        (["train", "--dataset_name", "x", "--method", "Diffusion-DPO"], "Diffusion-DPO", "diffusion_dpo"),
        (["train", "--dataset_name", "x", "--trajectory", "ddim_inversio"], "ddim_inversio", "ddim_inversion"),
        (["train", "--dataset_name", "x", "--error", "huber"], "huber", "pseudo_huber"),
        (["train", "--dataset_name", "x", "--generate", "{prompts: [a], scorers: [hpss]}"], "hpss", "hps"),
        (["train", "--dataset_name", "x", "--eval_every", "5", "--eval_prompts", "a", "--eval_scorers", "hpss"], "hpss", "hps"),
    ],
)
def test_a_misspelt_name_is_refused_without_importing_torch(refused, words, name, near):
    line = refused(*words)
    assert name in line
    assert f"`{near}`" in line or f" {near}" in line
