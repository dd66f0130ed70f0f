"""The page of models and the README's table of methods are what the matrix wrote."""

from __future__ import annotations

import pytest

from diffalign.models.backbones.folders import LAYOUTS
from scripts.matrix import FACTS, FILE, IMAGE, README, latent_of, page, readme, table, works
from scripts.model_memory import shape_of


def test_the_page_and_the_readme_hold_what_the_matrix_trained():
    text = FILE.read_text()
    cells = table(text, IMAGE[0])
    assert set(FACTS) == set(cells) == {layout.family for layout in LAYOUTS.values()}
    assert page(table(text, "models"), cells) == text
    assert readme(README.read_text(), cells) == README.read_text(), "run `python -m scripts.matrix --train` with the families that changed"


def test_a_quantised_base_takes_less_memory():
    for family, row in table(FILE.read_text(), "models").items():
        if row["LoRA, bf16"]:
            assert 1.0 < float(row["LoRA, nf4"]) < float(row["LoRA, bf16"]) < 100.0, family


def test_a_cell_that_changes_is_seen_in_the_readme():
    cells = table(FILE.read_text(), IMAGE[0])
    cells["sana"] = cells["sana"] | {"mapo": "no"}
    changed = readme(README.read_text(), cells)
    assert changed != README.read_text()
    assert "SANA 1.6B" in changed.partition("| method |")[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"dpo": "yes", "mapo": "yes", "ppd": "yes"}, "all"),
        ({"dpo": "yes", "mapo": "yes", "ppd": "no"}, "all but ppd"),
        ({"dpo": "yes", "mapo": "no", "ppd": "no"}, "dpo"),
    ],
)
def test_what_works_is_said_shortly(cells, words):
    assert works(cells) == words


def test_the_small_models_prompts_get_the_published_widths():
    assert latent_of("flux2", 2) == (128, 32, 32)
    flux = {"joint_attention_dim": 4096, "pooled_projection_dim": 768}
    assert shape_of("prompt_embeds", (2, 512, 16), flux) == (2, 512, 4096)
    assert shape_of("pooled_prompt_embeds", (2, 16), flux) == (2, 768)
    sdxl = {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816, "addition_time_embed_dim": 256}
    assert shape_of("pooled_prompt_embeds", (2, 16), sdxl) == (2, 1280)
    assert shape_of("prompt_embeds", (2, 9, 3, 16), {"text_hidden_dim": 2560, "num_text_layers": 12}) == (2, 9, 12, 2560)
    assert shape_of("prompt_attention_mask", (2, 9), flux) == (2, 9)
