"""The command line on real files: what it does, and what it refuses in one sentence before any weight loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from diffalign.cli.main import main, names
from diffalign.methods import METHODS
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.methods.recipe import recipe_of
from tests.checked import checked
from tests.micro import write_pairs
from tests.paths import CONFIGS


def test_a_misspelt_flag_is_refused_with_the_nearest_one(refused):
    assert "--learing_rate" in (line := refused("train", "--dataset_name", "x", "--learing_rate", "1"))
    assert "Did you mean `--learning_rate`?" in line


def test_a_misspelt_key_in_yaml_is_refused_with_the_file_and_the_nearest_one(refused, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset_name: x\nbeta_dpoo: 4000\n")
    line = refused("train", "--config", path)
    assert "mine.yaml: unknown key `beta_dpoo`" in line
    assert "Did you mean" in line


def test_a_negative_beta_is_refused(refused):
    assert "`beta` is -1.0; expected a finite number above zero" in refused("train", "--dataset_name", "x", "--beta_dpo", "-1")


def test_a_model_folder_without_a_unet_is_refused(refused, micro_sd, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(micro_sd, broken)
    shutil.rmtree(broken / "unet")
    assert "the folder has no `unet`" in refused("train", "--pretrained_model_name_or_path", broken, "--dataset_name", "x")


def test_pickled_weights_are_refused(refused, micro_sd, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(micro_sd, broken)
    for file in (broken / "vae").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert "no safetensors weights" in refused("train", "--pretrained_model_name_or_path", broken, "--dataset_name", "x")


def test_a_dataset_with_ties_only_is_refused(refused, micro_sd, tmp_path):
    ties = write_pairs(tmp_path / "ties.parquet", count=6, label=0.5)
    line = refused("train", "--pretrained_model_name_or_path", micro_sd, "--dataset_name", ties, "--output_dir", tmp_path / "run")
    assert "no pair with a preference is left of 6 records (0 strict pairs, 6 ties)" in line


def test_a_missing_dataset_is_refused(refused, micro_sd, tmp_path):
    line = refused("train", "--pretrained_model_name_or_path", micro_sd, "--dataset_name", tmp_path / "no.parquet")
    assert "there is no such file or folder" in line
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_command_method_and_reader_are_refused(refused, tmp_path):
    assert "trian" in refused("trian")
    assert "`method` is 'ddpo'" in refused("train", "--dataset_name", "x", "--method", "ddpo")
    write_pairs(tmp_path / "p.parquet", count=2)
    arguments = ("--dataset_name", tmp_path / "p.parquet", "--output_dir", tmp_path / "t", "--reader", "pikapic")
    assert "Did you mean `pickapic`?" in refused("data", "import", *arguments)


@pytest.mark.parametrize(
    "command",
    [["quickstart"], ["quickstart", "--text"], *map(list, names())],
    ids=" ".join,
)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: diffalign" in capsys.readouterr().out


def test_help_states_betas_convention_and_direction(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "LARGER beta = the model stays CLOSER" in said
    assert "--beta_dpo 2500 there = 5000 here" in said


def test_import_inspect_validate(tmp_path, capsys):
    source = write_pairs(tmp_path / "pairs.parquet", count=10)
    table = tmp_path / "table"
    assert main(["data", "import", "--dataset_name", str(source), "--output_dir", str(table)]) == 0
    assert "10 rows kept, 0 dropped, read as pickapic" in capsys.readouterr().out
    assert main(["data", "inspect", "--dataset_name", str(table), "--rows", "3"]) == 0
    assert (table / "contact_sheet.png").stat().st_size > 1000
    assert main(["data", "validate", "--dataset_name", str(table), "--resolution", "512"]) == 1
    assert "512" in capsys.readouterr().out


def test_flags_override_yaml_and_the_run_writes_what_it_used(micro_sd, pairs_file, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"beta_dpo": 100.0, "rank": 4, "max_train_steps": 2, "validation_prompts": ["a star"]}))
    arguments = ["--pretrained_model_name_or_path", str(micro_sd), "--dataset_name", str(pairs_file), "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--config", str(config), *arguments, "--rank", "2"]) == 0
    used = load_yaml(tmp_path / "run" / "config.yaml")
    assert (used["beta"], used["rank"], used["max_train_steps"]) == (100.0, 2, 2)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["steps"] == 2
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star\na red heart\n")
    evaluate = [
        "eval",
        "--output_dir",
        str(tmp_path / "run"),
        "--prompts",
        str(prompts),
        "--dataset_name",
        str(pairs_file),
        "--taste",
        "warm",
    ]
    assert main([*evaluate, "--num_inference_steps", "2"]) == 0
    facts = json.loads((tmp_path / "run" / "eval" / "eval.json").read_text())
    assert {one["scorer"]: 0.0 <= one["win_rate"] <= 1.0 for one in facts["comparisons"]} == {"adherence": True, "warm": True}
    assert 0.0 <= facts["implicit_accuracy_heldout"] <= 1.0


def test_the_published_recipe_says_what_the_launcher_says():
    recipe = load_yaml(CONFIGS / "diffusion_dpo_sd15.yaml")
    assert recipe["train_batch_size"] * recipe["gradient_accumulation_steps"] * 16 == 2048
    assert (recipe["beta"], recipe["learning_rate"], recipe["lr_warmup_steps"]) == (5000, 2.048e-5, 500)


def test_what_can_be_known_at_once_is_refused_at_once(refused, tmp_path):
    base = ("train", "--dataset_name", "x")
    assert "`lr_scheduler` is 'cosin'. Did you mean `cosine`?" in refused(*base, "--lr_scheduler", "cosin")
    assert "objective.hinge.beta" in refused(*base, "--objective", "{hinge: {beta: -1}}")
    assert "compares with a reference" in refused(*base, "--reference", "none")
    assert "Did you mean `wandb`?" in refused(*base, "--report_to", "wanb")
    assert "Did you mean `orient`?" in refused(*base, "--transforms", "[oreint]", "--output_dir", tmp_path)


def test_an_earlier_run_is_not_trained_over_without_a_word(refused, micro_sd, pairs_file, tmp_path):
    words = ["train", "--pretrained_model_name_or_path", str(micro_sd), "--dataset_name", str(pairs_file)]
    words += ["--output_dir", str(tmp_path / "r"), "--max_train_steps", "1", "--rank", "2"]
    assert main(words) == 0
    assert "holds an earlier run" in refused(*words)
    assert main([*words, "--train_method", "full", "--overwrite_output_dir"]) == 0
    assert not (tmp_path / "r" / "pytorch_lora_weights.safetensors").exists()


def test_env_prints_versions(capsys):
    assert main(["env"]) == 0
    assert "diffusers" in capsys.readouterr().out


def test_import_is_light():
    code = "import sys, diffalign; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], "torch numpy pyarrow PIL yaml huggingface_hub.utils diffusers transformers scipy asyncio"),
        (["train", "--help"], "torch diffusers transformers accelerate peft scipy pandas datasets httpx httpx2 asyncio gradio"),
    ],
)
def test_help_imports_nothing_heavy(words, heavy):
    script = (
        "import contextlib, sys; from diffalign.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main({words})\n"
        f"sys.stderr.write(', '.join(name for name in {heavy.split()} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: diffalign" in done.stdout


RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "accelerate")  # whose configs are its own


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_binds(path, monkeypatch):
    monkeypatch.setattr("diffalign.methods.packages.find_spec", lambda name: name)  # as if every optional package were installed
    written = load_yaml(path)
    config = checked(from_mapping({"dataset_name": "" if "prompts" in written else "x"} | written, str(path)))
    recipe = recipe_of(config)
    assert path.read_text().startswith("# ")
    assert callable(recipe.objective)
    assert callable(recipe.trajectory)
    assert callable(recipe.error)
    names = (config.method, recipe.objective.name, *(["sdpo"] if config.sdpo_mu is not None else []), recipe.tuning)
    named = path.name.removeprefix("text_").startswith(names)
    assert named or "prompts" in written or path.parent.name in ("tiny", "base")


def test_every_method_has_its_recipes():
    rewards = {name for name, method in METHODS.items() if method.inference == "reward"}
    images = METHODS.keys() - {"dpo"} - rewards
    recipes = {f"{method}_{model}" for method in images for model in ("sd15", "sdxl")} | {"text_dpo_lora"} | {"reward_bt", "reward_pal"}
    assert recipes <= {path.stem for path in CONFIGS.glob("*.yaml")}
    tiny = {path.stem for path in (CONFIGS / "tiny").glob("*.yaml") if not path.stem.startswith("votes_")}
    others = {"text_dpo", "rounds", "online", "online_people", "online_text", "online_vlm", "diffusion_kto", "controlnet_conditions"}
    others |= {"anchored", "slider"}
    assert images | others | rewards == tiny


def test_data_cache_computes_what_training_then_finds(micro_sd, pairs_file, tmp_path, capsys):
    table = tmp_path / "table"
    model = ["--pretrained_model_name_or_path", str(micro_sd), "--method", "inpo", "--output_dir", str(tmp_path / "run")]
    assert main(["data", "cache", *model, "--dataset_name", str(pairs_file)]) == 2
    assert "not a table" in capsys.readouterr().err
    assert main(["data", "import", "--dataset_name", str(pairs_file), "--output_dir", str(table)]) == 0
    assert main(["data", "cache", *model, "--dataset_name", str(table), "--trajectory"]) == 0
    assert "24 records, 4 points of the trajectory for each" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (table / "cache").rglob("x_t-?.npy")}
    assert len(before) == 4
    options = ["--trajectory_cache", "4", "--max_train_steps", "1", "--rank", "2"]
    assert main(["train", *model, "--dataset_name", str(table), *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in (table / "cache").rglob("x_t-?.npy")} == before
