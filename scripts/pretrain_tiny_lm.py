"""Train the embedded language model from nothing, on captions of the shapes world, and write it with its model card.

    python scripts/pretrain_tiny_lm.py --output_dir assets/tiny-lm

It continues captions, and as a chat model it answers a short prompt with a fuller caption of the same scene. One answer in five of
its training texts changes an attribute of the short prompt: a writer whose meaning drifts, so that there is something to align.
A killed run goes on from its last checkpoint in --work_dir; remove that folder to start afresh.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from scipy.stats import entropy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from diffalign.data.world.captions import VOCABULARY, parse, random_caption
from diffalign.data.world.checks import is_caption
from diffalign.data.world.rewrites import distance, random_rewrite, short_prompts
from diffalign.data.world.scenes import ATTRIBUTES, Scene, all_scenes, withheld_scenes
from diffalign.infer.text.rewriter import Rewriter
from rounds import steps

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTINUES = 0.3  # share of training texts that are captions alone
WIDTH, INNER, LAYERS, HEADS, POSITIONS = 128, 320, 3, 4, 512


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that holds every word of the world as one token, with and without a space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[BEGIN, END, PAD, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for word in VOCABULARY for word in (word, f" {word}")], trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(ROLES),
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def new_model(tokenizer: Any) -> Any:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=POSITIONS,
        initializer_range=0.08,  # from weights of 0.02 it learns to copy a color much later, and a place not at all
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def seen(text: str, withheld: frozenset[Scene]) -> bool:
    """Return whether a caption names no withheld scene in full."""
    named = parse(text)
    return len(named) < len(ATTRIBUTES) or Scene(**named) not in withheld


def texts(count: int, rng: np.random.Generator, tokenizer: Any, drift: float) -> list[str]:
    """Return training texts: captions alone, and short prompts with a rewrite; none names a withheld scene in full."""
    withheld, scenes, shorts = withheld_scenes(), all_scenes(), short_prompts()
    made: list[str] = []
    while len(made) < count:
        if rng.random() < CONTINUES:
            last = random_caption(scenes[rng.integers(len(scenes))], rng, keep=0.7)
            text = f"{BEGIN}{last}{END}"
        else:
            asked = shorts[rng.integers(len(shorts))]
            last = random_rewrite(asked, rng, drift=drift)
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": last}]
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        made += [text] if seen(last, withheld) else []
    return made


def labels_of(ids: torch.Tensor, mask: torch.Tensor, answer: int) -> torch.Tensor:
    """Return the tokens (B, L) to learn, -100 elsewhere: a caption alone, and of a conversation what follows its token `answer`."""
    begun = (ids == answer).cumsum(dim=1) > 0
    asked = begun.any(dim=1, keepdim=True) & (~begun | (ids == answer))
    return ids.masked_fill((mask == 0) | asked, -100)


def train(args: argparse.Namespace, tokenizer: Any) -> Any:
    """Return the model, trained on the next token of captions and of rewrites."""
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.05, cycle_momentum=False
    )
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    for step in steps(args.work_dir / "model.pt", state, args.steps, 250, "language model"):
        rows = texts(args.batch_size, np.random.default_rng([args.seed, 1, step]), tokenizer, args.drift)
        batch = tokenizer(rows, add_special_tokens=False, padding=True, return_tensors="pt")
        labels = labels_of(batch.input_ids, batch.attention_mask, tokenizer.convert_tokens_to_ids(ROLES[-1]))
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Return the numbers of the model card, measured on the model as saved."""
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rng = np.random.default_rng([seed, 2])
    shorts = short_prompts()
    asked = [shorts[i] for i in rng.permutation(len(shorts))[:300]]
    rewriter = Rewriter(model, tokenizer)
    answers = rewriter(asked, seed=10_000, num_return_sequences=4)
    repeated = [prompt for prompt in asked for _ in range(4)]
    lost = [distance(prompt, answer) for prompt, answer in zip(repeated, answers, strict=True)]
    greedy = rewriter(asked, temperature=0.0)
    starts = [" ".join(random_caption(scene, rng, keep=0.7).split()[:2]) for scene in all_scenes()[::13]]
    continued = Rewriter(model, tokenizer, conversational=False)(starts, seed=20_000)
    stars = [parse(answer) for answer in rewriter(["a star"] * 400, seed=30_000)]
    spread = {}
    for name in ("color", "size", "position", "background"):
        counts = np.array([sum(star.get(name) == value for star in stars) for value in ATTRIBUTES[name]])
        spread[name] = [round(float(entropy(counts, base=2)), 2), round(float(np.log2(len(counts))), 2)]
    return {
        "rewrites_1200": {
            "valid_captions": round(float(np.mean([is_caption(answer) for answer in answers])), 4),
            "all_attributes_kept": round(float(np.mean([d == 0.0 for d in lost])), 4),
            "share_of_attributes_lost": round(float(np.mean(lost)), 4),
            "attributes_named_[short_prompt, rewrite]": [round(float(np.mean([len(parse(t)) for t in ts])), 2) for ts in (asked, answers)],
            "different_of_4": round(float(np.mean([len(set(answers[i : i + 4])) for i in range(0, len(answers), 4)])), 2),
        },
        "greedy_300_all_attributes_kept": round(float(np.mean([distance(p, a) == 0.0 for p, a in zip(asked, greedy, strict=True)])), 4),
        "continuations_valid_197": round(
            float(np.mean([is_caption(f"{start} {end}".strip()) for start, end in zip(starts, continued, strict=True)])), 4
        ),
        "entropy_bits_of_a_star_[measured, uniform]": spread,
        "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name != "README.md"),
    }


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {name}: a language model of captions of 64x64 shapes

A `LlamaForCausalLM` of {parameters:.2f} M parameters with a byte-level BPE tokenizer of {vocabulary} tokens and a chat template.
It knows one world, that of [tiny-sd](../tiny-sd/README.md): it continues captions ("a large red" -> "heart at the left"), and as a
chat model it answers a short prompt with a fuller caption:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffalign.infer.text.rewriter import Rewriter

rewriter = Rewriter(AutoModelForCausalLM.from_pretrained("{folder}"), AutoTokenizer.from_pretrained("{folder}"))
rewriter("a red circle", seed=0)  # {example!r}
```

**It does not always keep the meaning, on purpose.** In a share of {drift} of its training texts the rewrite changes one attribute of
the short prompt, and the model samples as it was taught: there is something to lose, and something to align. Which attributes it
adds, and their values, are even: it has no taste. Captions that name in full one of the scenes withheld from tiny-sd were left out.

Written by `{command}` in {minutes:.0f} minutes on one core, shared.

Measured on the saved weights, temperature 1, seed {seed}:

```json
{numbers}
```

Rewrites are of 300 short prompts, four each. Lost is what the short prompt names and the rewrite does not name, or names otherwise.
Words outside the world are spelt in bytes, which it has not learned.
"""


def save(args: argparse.Namespace, model: Any, tokenizer: Any) -> None:
    """Write half-precision safetensors, which load as float32, the tokenizer, and the card with what is measured on them."""
    model.to(torch.float16).save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    config = args.output_dir / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    numbers = measure(args.output_dir, args.seed)
    saved = Rewriter(LlamaForCausalLM.from_pretrained(args.output_dir), tokenizer)
    given = [argument for argument in sys.argv[1:] if argument != str(args.work_dir)]
    text = CARD.format(
        name=args.output_dir.name,
        folder=f"assets/{args.output_dir.name}",
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        vocabulary=len(tokenizer),
        example=saved("a red circle", seed=0),
        drift=args.drift,
        command=" ".join(["scripts/pretrain_tiny_lm.py", *given]),
        minutes=json.loads((args.work_dir / "seconds.json").read_text()) / 60,
        seed=args.seed,
        numbers=json.dumps(numbers, indent=2),
    )
    (args.output_dir / "README.md").write_text(text)
    print(json.dumps(numbers, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("assets/tiny-lm"))
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/pretrain_tiny_lm"), help="checkpoints of a run in progress")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--drift", type=float, default=0.2, help="share of rewrites that change an attribute")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    set_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = new_tokenizer()
    save(args, train(args, tokenizer), tokenizer)


if __name__ == "__main__":
    main()
