"""The command line on a language model: dry run, held-out judging, CHES, and what is refused."""

import io
import json
import re
from pathlib import Path

import pytest

import diffalign
from diffalign.cli.main import main
from diffalign.data.pictures import decode_image
from diffalign.data.table import read_table
from diffalign.infer.text.rewriter import Rewriter
from tests.models.text.models import folder, llama, tokenizer

ROWS = [{"prompt": f"the word {i}", "chosen": f" is {i} and more", "rejected": " no"} for i in range(6)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with a model `lm`, pairs as file and as table, and a finished `run`."""
    root = tmp_path_factory.mktemp("commands")
    words = tokenizer()
    folder(root / "lm", llama(len(words)), words)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert main(["data", "import", "--dataset_name", str(root / "pairs.jsonl"), "--output_dir", str(root / "table")]) == 0
    small = {"max_train_steps": 4, "train_batch_size": 3, "learning_rate": 1e-2, "rank": 2}
    diffalign.align(root / "lm", root / "table", method="dpo", output_dir=root / "run", **small)
    return root


def test_a_dry_run_counts_what_training_trains(world, tmp_path, capsys):
    flags = ["--pretrained_model_name_or_path", str(world / "lm"), "--dataset_name", str(world / "table"), "--method", "dpo"]
    assert main(["train", *flags, "--rank", "2", "--output_dir", str(tmp_path / "run"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    config = llama(len(tokenizer())).config
    side, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * side // config.num_attention_heads
    # Rank 2 adds 2 (in + out) numbers to q, k, v, o, gate, up and down of each layer.
    sizes = [2 * side, side + keys, side + keys, 2 * side, side + inner, side + inner, side + inner]
    assert f"trained         {config.num_hidden_layers * 2 * sum(sizes):,} " in said
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in said
    assert "6: 667 passes in 1000 steps" in said
    assert not (tmp_path / "run").exists()


def test_a_run_loads_as_what_answers_however_it_is_placed(world):
    plain, mapped = (diffalign.load(world / "run", **placed) for placed in ({}, {"device_map": "cpu"}))
    assert isinstance(plain, Rewriter)
    assert plain(["the word 1"], seed=0, max_new_tokens=4) == mapped(["the word 1"], seed=0, max_new_tokens=4)


def test_eval_tells_what_the_run_says_of_pairs_and_writes_texts(world, capsys):
    flags = ["--output_dir", str(world / "run"), "--prompts", "the word 1", "a b c", "--dataset_name", str(world / "pairs.jsonl")]
    assert main(["eval", *flags, "--seed", "3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (world / "run" / "eval" / "texts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the word 1", "a b c"]
    assert set(rows[0]) == {"prompt", "base", "aligned"}
    held = facts["heldout"]
    assert held["pairs"] == 6
    # The reward's margin is beta times that of the log-ratios, and 0.1 the method's beta.
    margin = held["log_ratio/chosen"] - held["log_ratio/rejected"]
    assert held["rewards/margins"] == pytest.approx(0.1 * margin, abs=1e-5)
    assert held["rewards/accuracies"] == 1.0  # four steps at this rate learn six pairs by heart
    assert 0.0 < held["top_k/mass/base"] < 1.0
    assert held["top_k/mass/base"] != held["top_k/mass/aligned"]
    assert json.loads((world / "run" / "eval" / "report.json").read_text()) == facts


def test_ches_scores_let_a_training_leave_out_half_of_the_pairs(world, tmp_path, capsys):
    words = ["--dataset_name", str(world / "table"), "--pretrained_model_name_or_path", str(world / "lm")]
    assert main(["data", "ches", *words, "--output_dir", str(tmp_path / "scored")]) == 0
    assert "6 pairs with ches and ln_ches" in capsys.readouterr().out
    known = [record.candidates[0].scores["ln_ches"] for record in read_table(tmp_path / "scored")]
    assert len(set(known)) == 6
    half = ["orient", {"lowest": {"score": "ln_ches", "share": 0.5}}]
    run = diffalign.align(world / "lm", tmp_path / "scored", method="dpo", output_dir=tmp_path / "run", transforms=half, max_train_steps=1)
    assert json.loads((run / "run.json").read_text())["records"] == 3


REFUSED = [
    (["eval", "--prompts", "a", "--taste", "high"], "`taste` is for image models"),
    (["export", "--destination", "somewhere"], "in the format of its library already: adapter_model.safetensors"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=["eval", "export"])
def test_what_only_pictures_have_is_refused(world, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main([words[0], "--output_dir", str(world / "run"), *words[1:]]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "somewhere").exists()


def test_ches_needs_a_table_and_another_folder(world, tmp_path, capsys):
    for dataset, out, said in (
        (world / "pairs.jsonl", tmp_path / "out", "not a table; make one with"),
        (world / "table", world / "table", "the table itself; expected the folder of a new one"),
    ):
        assert main(["data", "ches", "--dataset_name", str(dataset), "--output_dir", str(out)]) == 2
        assert said in capsys.readouterr().err


def test_rewrite_shows_what_the_embedded_writer_learned(tmp_path, capsys):
    flags = ["--prompts", "a star", "--images_per_prompt", "2", "--seed", "2", "--num_inference_steps", "1", "--destination", str(tmp_path)]
    assert main(["rewrite", *flags]) == 0
    rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["prompt", "prompt", "base", "base", "trained", "trained"]
    assert [row[-1] for row in rows] == [str(tmp_path / f"0_{row[0]}_{n % 2}.png") for n, row in enumerate(rows)]
    assert {decode_image(Path(row[-1]).read_bytes(), row[-1]).size for row in rows} == {(64, 64)}
    assert all("at the top" in row[1] for row in rows[4:])


def test_rewrite_answers_lines_of_standard_input_and_goes_on_after_one_that_is_none(world, monkeypatch, tmp_path, capsys):
    lines = [{"prompt": "the word 1", "seed": 3}, {"word": 1}, {"prompt": "the word 2"}]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in lines)))
    flags = ["--output_dir", str(world / "run"), "--destination", str(tmp_path), "--draw", "false", "--images_per_prompt", "1"]
    assert main(["rewrite", *flags, "--follow"]) == 0
    first, bad, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["prompt"]["texts"] == ["the word 1"]
    assert first["trained"]["texts"] == diffalign.load(world / "run")(["the word 1"], seed=3)
    assert "word" in bad["error"]
    assert last["base"]["images"] == []


def test_rewrite_refuses_what_it_cannot_do_before_anything_loads(world, tmp_path, capsys):
    for flags, word in (
        ([], "--prompts"),
        (["--prompts", "a", "--images_per_prompt", "0"], "images_per_prompt"),
        (["--prompts", "a", "--output_dir", str(tmp_path)], str(tmp_path)),
    ):
        assert main(["rewrite", "--output_dir", str(world / "run"), *flags]) == 2
        assert word in capsys.readouterr().err
