"""Time and peak memory of a text-DPO step: TRL's DPOTrainer against ours, on the same pairs and the same random Llama.

    python -m scripts.bench_text --size tiny                # a minute: every switch, prompts 4 and 1 times the completion
    python -m scripts.bench_text --size 100m --tune full    # what TRL trains by default
    python -m scripts.bench_text --size 1b --prompt 256     # for a GPU

Variants are timed in turns (A B C A B C ...), and ratios are taken within a turn, so that a machine that slows down slows them all. A step
is forward, loss, backward, clipping and AdamW. TRL runs as its defaults are (bf16 by autocast, gradient checkpointing, live reference), and
with the reference precomputed, with and without checkpointing and bf16, under an adapter with the base in bf16, as ours has it; its best
is the fastest of them. Ours runs with a cached reference, shared prompts, rows without padding and the head in chunks, and with each of
these off. Peak memory is that of a process for each variant, above what it held before the model was built. The floor is our forward pass's
multiplications, twice (LoRA) or three times (full), at the best matmul rate of the same run. With `--threads 1` and no GPU, times are those
of the process alone.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from diffalign.core.types import TextBatch
from diffalign.models import adapters
from diffalign.models.lora_layers import Switch
from diffalign.models.reference import AdapterOff, Cached, Frozen
from diffalign.models.text.forward import read
from diffalign.models.text.likelihood import SequenceLikelihood, Switches
from diffalign.objectives import OBJECTIVES
from scripts.bench_step import clock, flops, matmul_rate, peak_mib

VOCABULARY, COMPLETION, RANK, BETA = 32_000, 64, 16, 0.1
SIZES = {"tiny": (4, 256, 4, 2, 704), "100m": (12, 768, 12, 4, 2048), "1b": (16, 2048, 32, 8, 8192)}  # layers, width, heads, of keys, inner
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON = Switches()


@dataclass(frozen=True, slots=True)
class Ours:
    """Our step with some switches off."""

    switches: Switches = ON
    cached: bool = True
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Trl:
    """TRL's step."""

    precomputed: bool = False
    checkpointing: bool = True
    precision: str = "bf16"
    base: str = "float32"  # the dtype of the weights under an adapter, TRL's own default; `model_init_kwargs` changes it


DEFAULTS = "TRL, defaults"
VARIANTS: Mapping[str, Ours | Trl] = {
    DEFAULTS: Trl(),
    "TRL, reference precomputed": Trl(precomputed=True),
    "TRL, precomputed, no checkpointing": Trl(precomputed=True, checkpointing=False),
    "TRL, precomputed, no checkpointing, bf16 base": Trl(precomputed=True, checkpointing=False, base="bfloat16"),
    "TRL, precomputed, no checkpointing, float32": Trl(precomputed=True, checkpointing=False, precision="no"),
    "ours": Ours(),
    "ours in float32": Ours(precision="no"),
    "ours, live reference": Ours(cached=False),
    "ours, prompts not shared": Ours(replace(ON, share_prompt=False)),
    "ours, rows padded": Ours(replace(ON, padding_free=False)),
    "ours, all logits": Ours(replace(ON, logits_chunk=0)),
    "ours, every switch off": Ours(Switches(share_prompt=False, padding_free=False, logits_chunk=0), cached=False),
}


def network(size: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a Llama with random weights, the same in every call."""
    layers, width, heads, kv_heads, inner = SIZES[size]
    shape: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, bos_token_id=1, eos_token_id=1, pad_token_id=0, **shape)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    return model.to(DEVICE, dtype)


def pairs(args: argparse.Namespace) -> TextBatch:
    """Return one step's pairs: random tokens, completions of one length, so that there is no padding to save."""
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> Tensor:
        return torch.randint(2, VOCABULARY, (length,), generator=draw)

    prompts = [text(args.prompt) for _ in range(args.pairs)]
    completions = tuple((text(COMPLETION), text(COMPLETION)) for _ in prompts)
    return TextBatch(tuple((ids, ids) for ids in prompts), completions, torch.ones(args.pairs)).to(DEVICE)


class OurStep:
    """Forward, loss and backward as the trainer runs them: an adapter on a base in half precision, or float32 weights under autocast."""

    def __init__(self, variant: Ours, args: argparse.Namespace) -> None:
        half, full = variant.precision == "bf16", args.tune == "full"
        self.model, self.half = network(args.size, torch.bfloat16 if half and not full else torch.float32), half
        frozen = Frozen(copy.deepcopy(self.model)) if full and not variant.cached else None
        if not full:
            adapters.add_lora(self.model, targets=LINEAR, rank=RANK)
        self.model.train()
        self.likelihood = SequenceLikelihood(read, switches=variant.switches)
        self.batch, start = pairs(args), frozen or AdapterOff(self.model, Switch(self.model))
        with torch.no_grad(), self.precision():
            known = (Frozen(self.model) if full else start).score(self.likelihood, self.batch).tokens
        self.reference = Cached() if variant.cached else start
        self.batch = replace(self.batch, reference=known.float())

    def precision(self) -> Any:
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.half)

    def backward(self) -> None:
        with self.precision():
            reference = self.reference.score(self.likelihood, self.batch)
            scores = self.likelihood.scores(self.likelihood.score(self.model, self.batch), reference, self.batch)
        OBJECTIVES["dpo"](scores, beta=BETA).mean().backward()


class TrlStep:
    """Forward, loss and backward of DPOTrainer, on the batch that its collator makes."""

    def __init__(self, variant: Trl, args: argparse.Namespace) -> None:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        AcceleratorState._reset_state()
        rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}]
        options: dict[str, Any] = {"beta": BETA, "max_length": None, "report_to": "none", "use_cpu": DEVICE.type == "cpu"}
        options |= {"bf16": variant.precision == "bf16", "gradient_checkpointing": variant.checkpointing, "disable_tqdm": True}
        policy, live = (
            network(args.size, getattr(torch, variant.base) if args.tune == "lora" else torch.float32),
            args.tune == "full" and not variant.precomputed,
        )
        folder = tempfile.mkdtemp()
        self.trainer = DPOTrainer(
            policy,
            copy.deepcopy(policy) if live else None,
            DPOConfig(folder, precompute_ref_log_probs=variant.precomputed, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=words(),
            peft_config=LoraConfig(r=RANK, target_modules=LINEAR) if args.tune == "lora" else None,
        )
        self.model: Any = self.trainer.model
        if variant.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.inputs = self._inputs(pairs(args), precomputed=variant.precomputed)
        self.state = dict(AcceleratorState._shared_state)

    def _inputs(self, batch: TextBatch, *, precomputed: bool) -> dict[str, Tensor]:
        rows = [
            {"prompt_ids": prompts[0].tolist(), "chosen_ids": own[0].tolist(), "rejected_ids": own[1].tolist()}
            for prompts, own in zip(batch.prompts, batch.completions, strict=True)
        ]
        inputs = {name: value.to(DEVICE) for name, value in self.trainer.data_collator(rows).items()}
        if precomputed:
            sides = self.trainer.compute_ref_log_probs(self.model, inputs)
            inputs |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), sides, strict=True))
        return inputs

    def backward(self) -> None:
        # accelerate keeps one precision a process; each trainer gets its own back.
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(self.state)
        with self.trainer.compute_loss_context_manager():
            loss = self.trainer.compute_loss(self.model, self.inputs)
        self.trainer.accelerator.backward(loss)


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer that TRL's constructor is content with."""
    inner = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="a"))  # noqa: S106  # a token of text
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")  # noqa: S106  # tokens of text


class Stepper:
    """A variant with its optimiser."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        variant = VARIANTS[name]
        self.step = OurStep(variant, args) if isinstance(variant, Ours) else TrlStep(variant, args)
        self.parameters = [p for p in self.step.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=True)

    def seconds(self, repeats: int) -> float:
        """Return the median time of a step."""
        times = []
        for _ in range(repeats):
            start = clock(DEVICE)
            self.step.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            times.append(clock(DEVICE) - start)
        return statistics.median(times)


def peak(name: str, args: argparse.Namespace) -> float:
    """Return the peak memory in MiB that a variant adds in a process of its own."""
    own = ["--size", args.size, "--tune", args.tune, "--prompt", args.prompt, "--pairs", args.pairs, "--threads", args.threads]
    command = [sys.executable, "-m", "scripts.bench_text", "--peak_of", name, *map(str, own)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603  # this script
    return float(done.stdout.split()[-1])


def table(rounds: list[dict[str, float]], peaks: Mapping[str, float], tokens: int) -> str:
    """Return a Markdown table; speeds against TRL's are medians of the ratios within a round."""
    seconds = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    theirs = [name for name in seconds if isinstance(VARIANTS[name], Trl)]
    best = min(theirs, key=lambda name: seconds[name], default=None)
    lines = ["| variant | s/step | tokens/s | x TRL's defaults | x TRL's best | peak MiB |", "|---|---|---|---|---|---|"]
    for name in seconds:
        faster = [statistics.median(r[other] / r[name] for r in rounds) if other in seconds else None for other in (DEFAULTS, best)]
        cells = [f"{seconds[name]:.3f}", f"{tokens / seconds[name]:.0f}", *(f"{x:.2f}" if x else "-" for x in faster)]
        memory = f"{peaks[name]:.0f}" if name in peaks else "-"
        lines.append(f"| {name}{' (its best)' if name == best else ''} | {' | '.join(cells)} | {memory} |")
    return "\n".join(lines)


def least_flops(args: argparse.Namespace) -> int:
    """Return the operations of our forward pass, and of a backward pass that gives activations (full: weights too) their gradients."""
    step = OurStep(Ours(), args)
    return flops(lambda: step.likelihood.score(step.model, step.batch)) * (2 if args.tune == "lora" else 3)


def bench(args: argparse.Namespace) -> None:
    """Measure one length of prompts and print its table."""
    names = [name for name in VARIANTS if not args.only or name in args.only]
    steppers = {name: Stepper(name, args) for name in names}
    rate, rounds = 0.0, []
    dtype, width = torch.bfloat16, SIZES[args.size][1]
    for turn in tqdm(range(1 + args.rounds), desc="time (the first round warms up)"):
        rate = max(rate, matmul_rate((1536, width, 4 * width), dtype, DEVICE))
        rounds.append({name: stepper.seconds(args.repeats if turn else 1) for name, stepper in steppers.items()})
    steppers.clear()
    work = least_flops(args)
    peaks = {} if args.no_memory else {name: peak(name, args) for name in tqdm(names, desc="peak memory, a process each")}
    print(f"\n{args.size}, {args.tune}, {args.pairs} pairs of {args.prompt} + {COMPLETION} + {COMPLETION} tokens, {DEVICE.type}")
    print(table(rounds[1:], peaks, args.pairs * 2 * (args.prompt + COMPLETION)))
    print(f"floor: {work / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s (bf16) = {work / rate:.3f} s", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="6, 100 or 1000 million parameters besides a vocabulary of 32k")
    parser.add_argument("--tune", choices=["lora", "full"], default="lora", help="what is trained, on both sides")
    parser.add_argument("--prompt", type=int, nargs="+", default=[256, 64], help="tokens of the prompt; a table for each")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of all variants that count")
    parser.add_argument("--repeats", type=int, default=1, help="steps of a variant in a turn, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", help=f"these alone, of: {'; '.join(VARIANTS)}")
    parser.add_argument("--no_memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for prompt in args.prompt:
        own = argparse.Namespace(**{**vars(args), "prompt": prompt})
        if args.peak_of:
            import trl  # noqa: F401  # so that its own size is not counted

            before = peak_mib()
            Stepper(args.peak_of, own).seconds(2)  # the optimiser has its state from the first step on
            print(peak_mib() - before)
        else:
            bench(own)


if __name__ == "__main__":
    main()
