"""Tiny language models with random weights and tokenizers, made in the test, and the real pairs that tests train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAIRS = Path(__file__).parent / "fixtures" / "pairs.jsonl"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|im_end|>", "<|im_start|>"]  # ids 0 to 3; <|im_end|> ends texts
SENTENCES = [
    "A photo of a red circle above a blue square, painted by hand.",
    "The answer to the question is that the sum of the two numbers is seven.",
    "What is the smallest number that is divisible by 5? Write a sentence in English.",
    "Given a word, write another word that has the same meaning as the first one.",
]


def tokenizer(
    folder: Path | None = None, *, template: bool = True, pad: bool = True, bos: bool = True, eos: bool = True
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 320 tokens with a ChatML template, saved in `folder` if given; with `bos` texts start with it."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    named = {"bos_token": "<|bos|>" if bos else None, "eos_token": "<|im_end|>" if eos else None, "pad_token": "<|pad|>" if pad else None}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **{name: token for name, token in named.items() if token})
    if template:
        made.chat_template = CHAT_TEMPLATE
    if folder is not None:
        made.save_pretrained(folder)
    return made


def llama(
    vocab: int = 320, *, layers: int = 2, width: int = 32, heads: int = 4, kv_heads: int = 2, tie: bool = False, seed: int = 0
) -> LlamaForCausalLM:
    """Return a Llama with grouped-query attention and rotary positions, in float32, in evaluation mode."""
    return _made(LlamaForCausalLM, LlamaConfig(tie_word_embeddings=tie, **_sizes(vocab, layers, width, heads, kv_heads)), seed)


def mistral(
    vocab: int = 320, *, layers: int = 2, width: int = 32, heads: int = 4, kv_heads: int = 2, window: int = 8, seed: int = 0
) -> MistralForCausalLM:
    """Return a Mistral whose tokens see the last `window` ones alone."""
    return _made(MistralForCausalLM, MistralConfig(sliding_window=window, **_sizes(vocab, layers, width, heads, kv_heads)), seed)


def gpt2(vocab: int = 320, *, layers: int = 2, width: int = 32, heads: int = 4, seed: int = 0) -> GPT2LMHeadModel:
    """Return a GPT-2: learned absolute positions, tied embeddings, no dropout."""
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=2048,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _made(GPT2LMHeadModel, config, seed)


def mamba(vocab: int = 320, *, layers: int = 2, width: int = 32, seed: int = 0) -> MambaForCausalLM:
    """Return a Mamba: a recurrent model, whose candidates cannot share a prompt in one row."""
    config = MambaConfig(vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, state_size=4, bos_token_id=1, eos_token_id=2)
    return _made(MambaForCausalLM, config, seed)


def folder(path: Path, model: PreTrainedModel, tokens: PreTrainedTokenizerFast) -> Path:
    """Save model and tokenizer in `path` and return it."""
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    return path


def rows(kind: str | None = None) -> list[dict[str, Any]]:
    """Return the 32 real pairs in TRL's columns, or the 16 of one `kind`: plain (texts) or chat (lists of messages)."""
    every = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [row for row in every if kind is None or isinstance(row["prompt"], str) == (kind == "plain")]


def write_rows(path: Path, values: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON lines and return the path."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def _sizes(vocab: int, layers: int, width: int, heads: int, kv_heads: int) -> dict[str, int]:
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {
        "vocab_size": vocab,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | shape


def _made(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).float().eval()
