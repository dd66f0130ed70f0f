"""Vision-language models of a few thousand random numbers, with a tokenizer, a processor and a chat template of their kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

WORDS = ["Picture", "preferred", "dispreferred", "Pair", "Prompt", "red", "star", "User", "Profile", *map(str, range(1, 9))]
SPECIAL = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
LAYERS, WIDTH = 3, 16
TEXT = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1}
TEXT |= {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 1, "max_position_embeddings": 2048}
HEAD = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
IN_TURN = (
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s{%% else %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}"
)
PICTURES_FIRST = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}\n{{ part['text'] }}{% endfor %}"
)
TEMPLATES = {"llava": HEAD + PICTURES_FIRST + TAIL, "qwen": HEAD + IN_TURN % "<|vision_start|><|image_pad|><|vision_end|>" + TAIL}


def tokenizer(*tokens: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, where each of `tokens` is one; their ids follow those of SPECIAL."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *tokens, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *tokens]})
    return made


def write_llava(folder: Path, template: str | None = TEMPLATES["llava"], seed: int = 0) -> Path:
    """Write a random LLaVA-OneVision, whose template puts pictures first; a picture among others is 4 + 1 tokens."""
    words = tokenizer("<image>", "<video>")
    grid: Any = [[16, 16], [16, 32], [32, 16]]
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, vision_use_head=False
    )
    text = Qwen2Config(**TEXT, vocab_size=len(words))
    torch.manual_seed(seed)
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=4, video_token_index=5, image_grid_pinpoints=grid
    )
    size = {"height": 16, "width": 16}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        words,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    return _written(folder, LlavaOnevisionForConditionalGeneration(config), processor)


def write_qwen(folder: Path, template: str | None = TEMPLATES["qwen"], seed: int = 0) -> Path:
    """Write a random Qwen2-VL, whose template keeps the order; a picture is as many tokens as its size asks for."""
    words = tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    tokens = {"image_token_id": 4, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    torch.manual_seed(seed)
    config = Qwen2VLConfig(
        text_config=TEXT | {"vocab_size": len(words), "rope_parameters": rope}, vision_config=vision, tie_word_embeddings=False, **tokens
    )
    pixels = {"patch_size": 4, "min_pixels": 64, "max_pixels": 1024}
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**pixels), words, Qwen2VLVideoProcessor(**pixels), chat_template=template)
    return _written(folder, Qwen2VLForConditionalGeneration(config), processor)


def _written(folder: Path, network: Any, processor: Any) -> Path:
    """Write both; the network's numbers are large enough for its words to depend on what it sees."""
    for name, value in network.named_parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.3 if "embed" in name or "lm_head" in name else 0.2)
    network.generation_config.eos_token_id = 3
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
