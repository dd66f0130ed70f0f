"""Training a language model as users do: from a folder and a table, through the same trainer as images."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffalign
from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping
from diffalign.train.align import train
from diffalign.train.trainer import trainer_for
from tests.models.text.models import folder, llama, tokenizer

PAIRS = [
    {"prompt": "a red circle", "chosen": " near the top", "rejected": " at the bottom of a field"},
    {"prompt": "a star", "chosen": " that is large", "rejected": ""},
    {"prompt": "one more", "chosen": " word", "rejected": " word"},
    {"prompt": "a blue square on white", "chosen": " in the middle", "rejected": " somewhere else"},
] * 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with a tiny language model `lm` and a file of pairs."""
    root = tmp_path_factory.mktemp("world")
    words = tokenizer()
    folder(root / "lm", llama(len(words)), words)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return root


def config(world, out, **values):
    own = {"pretrained_model_name_or_path": str(world / "lm"), "dataset_name": str(world / "pairs.jsonl"), "method": "dpo"}
    small = {"max_train_steps": 3, "train_batch_size": 4, "learning_rate": 1e-2, "rank": 2, "output_dir": str(out)}
    return from_mapping({**own, **small, **values}, "test")


def log(run):
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


def losses(run):
    return [row["loss"] for row in log(run)]


# peft asks for an attribute that transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_loss_begins_at_log_two_and_the_adapter_loads_with_peft_alone(world, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = train(config(world, tmp_path / "run"))
    rows = log(run)
    assert rows[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
    assert rows[-1]["loss"] < rows[0]["loss"]
    base = AutoModelForCausalLM.from_pretrained(world / "lm")
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "lm"), str(run)).eval()
    own = diffalign.load(run)
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        torch.testing.assert_close(own.model(ids).logits, tuned(ids).logits)
        assert (tuned(ids).logits - base(ids).logits).abs().max() > 1e-4
    assert json.loads((run / "run.json").read_text())["kind"] == "text"


def test_full_fine_tuning_writes_a_model_with_its_tokenizer(world, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(config(world, tmp_path / "run", train_method="full", learning_rate=1e-3))
    AutoTokenizer.from_pretrained(run / "model")
    tuned, base = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (run / "model", world / "lm"))
    assert all((tuned[name] != value).any() for name, value in base.items() if "norm" not in name)
    assert losses(run)[0] == pytest.approx(math.log(2.0), abs=1e-6)
    assert isinstance(diffalign.load(run)("a red circle", seed=1, max_new_tokens=4), str)


@pytest.mark.parametrize("train_method", ["lora", "full"])
def test_a_reference_computed_before_or_in_every_step_gives_the_same_training(world, tmp_path, train_method):
    runs = [train(config(world, tmp_path / str(kept), precompute_ref_log_probs=kept, train_method=train_method)) for kept in (True, False)]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-6)


def test_the_switches_for_speed_change_nothing(world, tmp_path):
    off = {"share_prompt": False, "padding_free": False, "logits_chunk": 0, "precompute_ref_log_probs": False}
    runs = [
        train(config(world, tmp_path / name, **own))
        for name, own in (("on", {}), ("off", off), ("checked", {"gradient_checkpointing": True}))
    ]
    for other in runs[1:]:
        assert losses(runs[0]) == pytest.approx(losses(other), abs=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(world, tmp_path):
    whole = train(config(world, tmp_path / "whole", checkpointing_steps=2, max_train_steps=4))
    (tmp_path / "cut").mkdir()
    for name in ("checkpoint-2", "data", "train_log.jsonl"):
        source = whole / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / "cut" / name)
    resumed = train(config(world, tmp_path / "cut", max_train_steps=4, resume_from_checkpoint="latest"))
    a, b = (load_file(run / "adapter_model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(CheckpointError, match=r"likelihood None.*mean"):
        train(config(world, tmp_path / "cut", max_train_steps=4, resume_from_checkpoint="latest", likelihood="mean"))


def test_validation_prompts_are_answered_beside_the_log(world, tmp_path):
    run = train(config(world, tmp_path / "run", validation_prompts=["a star", "a red circle"]))
    shown = [(run / "validation" / f"step-{step:06d}.txt").read_text() for step in (0, 3)]
    assert [text.count("  -> ") for text in shown] == [2, 2]
    assert shown[0].startswith("a star\n")


@pytest.mark.parametrize(
    ("objective", "likelihood"),
    [("simpo", "mean"), ("orpo", "sum"), ("tdpo", "sum"), ("wpo", "sum"), ("kto", "sum"), ("dpo", "joint"), ("ipo", "mean")],
)
def test_objectives_that_need_more_than_sums_train(world, tmp_path, objective, likelihood):
    constants = {"ipo": {"tau": 0.1}, "dpo": {"beta": 0.1}, "kto": {"beta": 0.1}}.get(objective, {})
    run = train(config(world, tmp_path / "run", objective={objective: constants}, likelihood=likelihood))
    values = losses(run)
    assert all(map(math.isfinite, values))
    assert len(set(values)) == 3


def test_grpo_of_texts_trains_on_the_advantages_of_a_table(world, tmp_path):
    grpo = {"clipped_ratio": {"low": 0.2, "kl": 0.04}}
    transforms = ["share_beaten", {"advantage": {"score": "gains"}}]
    run = train(config(world, tmp_path / "run", objective=grpo, beta=None, transforms=transforms, learning_rate=1e-2))
    first, *_, last = (json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(0.0, abs=1e-6)  # every ratio is 1, and a record's advantages sum to 0
    assert last["implicit_acc"] > 0.5


def test_reference_free_objectives_need_no_reference(world, tmp_path):
    made = config(world, tmp_path / "run", objective="simpo", likelihood="mean", reference="none")
    assert trainer_for(made).parts.reference.score(None, None) is None


def test_a_curriculum_shows_the_largest_gaps_first(world, tmp_path):
    rows = [
        {"prompt": f"prompt {i}", "candidates": [{"text": " a", "scores": {"taste": float(i)}}, {"text": " b", "scores": {"taste": 0.0}}]}
        for i in range(8)
    ]
    records = [
        diffalign.Record(
            id=str(i), prompt=row["prompt"], prob=1.0, candidates=tuple(diffalign.Candidate(**own) for own in row["candidates"])
        )
        for i, row in enumerate(rows)
    ]
    diffalign.write_table(tmp_path / "table", records)
    made = config(world, tmp_path / "run", dataset_name=str(tmp_path / "table"), curriculum={"gap": {"score": "taste", "stages": 2}})
    made = from_mapping({**vars_of(made), "max_train_steps": 2}, "test")
    sampler = trainer_for(made).sampler
    seen = [{position for position, _ in sampler.indices(part)} for step in range(2) for part in sampler.passes(step)]
    assert seen == [{4, 5, 6, 7}, {0, 1, 2, 3}]


def vars_of(made):
    return {name: getattr(made, name) for name in TrainConfig.__dataclass_fields__}


BAD = [
    ({"resolution": 64}, "`resolution` is for image models"),
    ({"objective": "mapo"}, "objective `mapo` is made for denoising errors"),
    ({"objective": "dspo"}, "objective `dspo` compares the outputs of denoisers"),
    ({"objective": {"tdpo": {"beta": 0.1}}, "likelihood": "mean"}, "`tdpo` adds up tokens itself, and `likelihood` is mean"),
    ({"likelihood": "men"}, "`likelihood` is 'men'"),
    ({"likelihood": {"ld_dpo": {"alpha": 2.0}}}, "it lies between 0 and 1"),
    ({"method": "inpo", "beta": 0.1}, "method `inpo` is made for image models; choose dpo"),
    ({"method": "diffusion_dpo"}, "`objective.dpo.beta` is 5000.0; expected about 0.1, for it multiplies nats"),
    ({"method": "ppd"}, "only image models have users"),
    ({"attention_backend": "_native_math"}, "PyTorch's own is used"),
    ({"curriculum": {"gap": {"steges": 3}}}, "takes no `steges`"),
    ({"chat_template": "absent.jinja"}, r"absent\.jinja cannot be read"),
]


@pytest.mark.parametrize(("values", "said"), BAD, ids=[said[:20] for _, said in BAD])
def test_what_cannot_be_meant_is_refused(world, tmp_path, values, said):
    with pytest.raises(ConfigError, match=said):
        train(config(world, tmp_path / "run", **values))


def test_texts_for_an_image_model_and_images_for_a_language_model_are_refused(world, tmp_path):
    with pytest.raises(TableError, match="a table of texts"):
        train(config(world, tmp_path / "run", pretrained_model_name_or_path="assets/tiny-sd"))
    with pytest.raises(ConfigError, match="`padding_free` is for language models"):
        train(config(world, tmp_path / "run", pretrained_model_name_or_path="assets/tiny-sd", padding_free=False))


def test_folders_that_hold_no_causal_model_are_named(world, tmp_path):
    for name, spoil, said in (
        ("other", lambda path: _replace(path / "config.json", "LlamaForCausalLM", "LlamaForSequenceClassification"), "expected a causal"),
        ("pickled", lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"), "no safetensors weights"),
        ("wordless", lambda path: [file.unlink() for file in path.glob("tokenizer*")], "no tokenizer"),
    ):
        path = tmp_path / name
        shutil.copytree(world / "lm", path)
        spoil(path)
        with pytest.raises(CheckpointError, match=said):
            train(config(world, tmp_path / "run", pretrained_model_name_or_path=str(path)))


def _replace(file, old, new):
    file.write_text(file.read_text().replace(old, new))


def test_a_model_of_other_numbers_does_not_find_the_reference_of_the_first(world, tmp_path):
    train(config(world, tmp_path / "first", cache_dir=str(tmp_path / "cache")))
    spoilt = tmp_path / "lm"
    shutil.copytree(world / "lm", spoilt)
    tensors = load_file(spoilt / "model.safetensors")
    tensors["model.embed_tokens.weight"][40:] += 0.5  # far behind the first numbers
    save_file(tensors, spoilt / "model.safetensors", metadata={"format": "pt"})
    _replace(spoilt / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02')
    second = train(config(world, tmp_path / "second", cache_dir=str(tmp_path / "cache"), pretrained_model_name_or_path=str(spoilt)))
    assert losses(second)[0] == pytest.approx(math.log(2.0), abs=1e-6)
    assert len(list((tmp_path / "cache").glob("reference-*"))) == 2


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_template_given_in_training_is_that_of_the_result(world, tmp_path):
    words = tokenizer(template=False)
    folder(tmp_path / "lm", llama(len(words)), words)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    rows = [
        {
            key: [{"role": role, "content": text}]
            for key, role, text in (("prompt", "user", "hi"), ("chosen", "assistant", "yes"), ("rejected", "assistant", "no"))
        }
    ] * 4
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"pretrained_model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "chats.jsonl")}
    with pytest.raises(ConfigError, match="chat_template"):
        train(config(world, tmp_path / "none", **own))
    told = own | {"chat_template": str(tmp_path / "chat.jinja"), "validation_prompts": ["hi"]}
    for method in ("lora", "full"):
        run = train(config(world, tmp_path / method, **told, train_method=method))
        loaded = diffalign.load(run)
        assert loaded.conversational
        assert loaded.tokenizer.chat_template == TEMPLATE
        assert isinstance(loaded("hi", seed=0, max_new_tokens=4), str)


def test_caches_of_a_language_model_are_filled_before_training(world, tmp_path, capsys):
    from diffalign.cli.main import main

    model = ["--pretrained_model_name_or_path", str(world / "lm"), "--method", "dpo", "--output_dir", str(tmp_path / "run")]
    assert main(["data", "import", "--dataset_name", str(world / "pairs.jsonl"), "--output_dir", str(tmp_path / "table")]) == 0
    assert main(["data", "cache", *model, "--dataset_name", str(tmp_path / "table")]) == 0
    assert "the reference's log-probabilities of 8 records" in capsys.readouterr().out
    assert len(list((tmp_path / "table" / "cache").glob("reference-*"))) == 1
