"""Random parts of micro models: tokenizers that know the words of the shapes world, text encoders, autoencoders, and a UNet."""

from __future__ import annotations

import atexit
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, UNet2DConditionModel
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral3Model,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from diffalign.data.world.captions import VOCABULARY

WIDTH = 16  # of every text encoder
SIDE = 32  # pixels of an image; its latent has 8
# Sizes of a language model.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
SMALL = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, **HEADS}
QWEN_TEMPLATE = (
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects and "
    "background:\nuser\nassistant"
)
EDIT_TEMPLATE = (
    "system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), then explain how the user's "
    "text instruction should alter or modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.\nuser\nassistant\nPicture"
)
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_tokenizer(pad: str | None = None, length: int = 12) -> Any:
    """Return a byte-pair tokenizer of the shapes world's words, `length` tokens long; `pad` replaces the end token as padding."""
    # Written out, since training one breaks ties at random: the same words would have other numbers in every run.
    letters = sorted(ByteLevel.alphabet())
    merges = list(dict.fromkeys(pair for word in VOCABULARY for pair in _pairs(word)))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length, **({} if pad is None else {"pad_token": pad}))


def _pairs(word: str) -> list[tuple[str, str]]:
    """Return what is joined to make `word`: r and e, then re and d, for red."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(pieces[:i]), pieces[i]) for i in range(1, len(pieces))]


def t5_tokenizer() -> Any:
    """Return a unigram tokenizer of the same words, and of letters for the others."""
    words = [(f"▁{word}", -3.0) for word in VOCABULARY]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz" if f"▁{letter}" not in VOCABULARY]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *words, *letters], extra_ids=0, model_max_length=512)


def clip(kind: Any, tokenizer: Any, layers: int = 2, activation: str = "quick_gelu", width: int = WIDTH) -> Any:
    """Return a random CLIP text encoder of class `kind`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        hidden_act=activation,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config)


def t5(tokenizer: Any, width: int = WIDTH) -> Any:
    """Return a random T5 encoder."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": WIDTH, "num_heads": 2, "num_layers": 1}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", dropout_rate=0.0, **sizes))


def autoencoder(channels: int = 4, levels: int = 3, **config: Any) -> Any:
    """Return a random autoencoder that makes 8 by 8 latents of 32 pixels, with 4 `levels` 4 by 4 ones."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=SIDE,
        **config,
    )


def unet(*blocks: str, **config: Any) -> Any:
    """Return a random UNet with the down blocks `blocks`, and their mirror."""
    mirror = tuple(block.replace("Down", "Up") for block in reversed(blocks))
    shape = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(down_block_types=blocks, up_block_types=mirror, attention_head_dim=2, **shape, **config)


def flux_autoencoder(levels: int = 3) -> Any:
    """Return a random autoencoder with the numbers of Flux's, which others have taken over."""
    return autoencoder(16, levels, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def qwen_tokenizer() -> Any:
    """Return a byte-level tokenizer of single letters, with the chat template of the Qwen family."""
    letters = sorted(ByteLevel.alphabet())
    ends = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: number for number, token in enumerate([*letters, *ends])}
    return Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=ends, chat_template=CHAT, model_max_length=512)


def worded_qwen_tokenizer(text: str) -> Any:
    """Return a byte-level tokenizer that knows the words of the shapes world and of `text`, with the Qwen family's marks."""
    words = [*(f"Ġ{word}" for word in VOCABULARY), *dict.fromkeys(re.findall(r"Ġ?[a-zA-Z]+", text.replace(" ", "Ġ")))]
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    letters, ends = sorted(ByteLevel.alphabet()), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*letters, *(a + b for a, b in merges), *ends]))}
    return Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=ends, model_max_length=512)


def vision_tokenizer(text: str) -> Any:
    """Return the same, with the marks of pictures in a prompt."""
    tokenizer = worded_qwen_tokenizer(text)
    tokenizer.add_tokens(VISION, special_tokens=True)
    return tokenizer


def qwen3(tokenizer: Any) -> Any:
    """Return a random Qwen3 without a head."""
    return Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **SMALL))


def qwen3_vl(tokenizer: Any) -> Any:
    """Return a random Qwen3-VL without a head."""
    turns = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    sizes = {"depth": 1, "hidden_size": 8, "num_heads": 1, "intermediate_size": 8, "out_hidden_size": WIDTH, "num_position_embeddings": 4}
    vision = {**sizes, "deepstack_visual_indexes": [0]}
    return Qwen3VLModel(Qwen3VLConfig(text_config={**SMALL, **turns, "vocab_size": len(tokenizer)}, vision_config=vision))


def pixtral_processor() -> Any:
    """Return a processor of words and pictures, whose tokenizer knows the words of FLUX.2 dev's system message, and pads in front."""
    tokenizer, marks = worded_qwen_tokenizer(SYSTEM_MESSAGE).backend_tokenizer, ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    tokenizer.add_special_tokens(marks)
    options = {"pad_token": "<|endoftext|>", "padding_side": "left", "model_max_length": 512}
    turns = "{% for message in messages %}[INST]{% for part in message.content %}{{ part.text }}{% endfor %}[/INST]{% endfor %}"
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    return PixtralProcessor(PixtralImageProcessor(patch_size=16), words, patch_size=16, chat_template=turns)


def chatglm_tokenizer() -> Any:
    """Return a tokenizer of single letters with ChatGLM's marks, whose file sentencepiece writes."""
    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    written = io.BytesIO()
    options = {"model_type": "char", "vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(VOCABULARY), model_writer=written, **options)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)  # it is read again where the tokenizer is saved
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return ChatGLMTokenizer(str(folder / "tokenizer.model"))


def chatglm(tokenizer: Any) -> Any:
    """Return a random ChatGLM."""
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    sizes = {"num_layers": 2, "hidden_size": WIDTH, "ffn_hidden_size": WIDTH, "kv_channels": 8, "num_attention_heads": 2}
    turns = {"multi_query_attention": True, "multi_query_group_num": 1, "add_qkv_bias": True, "original_rope": True}
    model = ChatGLMModel(ChatGLMConfig(padded_vocab_size=tokenizer.vocab_size, seq_length=256, **sizes, **turns))
    for value in model.parameters():  # which it leaves as memory was
        torch.nn.init.normal_(value, mean=float(value.dim() == 1), std=0.2)
    return model


def mistral(tokenizer: Any, layers: int | None = None) -> Any:
    """Return a random Mistral 3, without a head but where its `layers` are counted."""
    vision = {"model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), **SMALL, **({} if layers is None else {"num_hidden_layers": layers})}
    config = Mistral3Config(text_config=text, vision_config={**vision, "head_dim": 8, "image_size": 32, "patch_size": 16})
    return Mistral3Model(config) if layers is None else Mistral3ForConditionalGeneration(config)


def patch_autoencoder() -> Any:
    """Return a random autoencoder of FLUX.2, which makes 4 by 4 patches of 32 pixels, with a batch norm of some means and deviations."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8,) * 3, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4, "sample_size": SIDE}
    vae = AutoencoderKLFlux2(**blocks, **sizes, use_quant_conv=False, use_post_quant_conv=False)
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return vae


def compressing_autoencoder() -> Any:
    """Return a random autoencoder without a posterior that makes 8 by 8 latents of 32 pixels."""
    sides = {"block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), ())}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    return AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.41407, **sides)


def gemma(tokenizer: Any) -> Any:
    """Return a random Gemma 2 without a head."""
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=2, **SMALL))


def qwen_vl(tokenizer: Any, patch: int = 14) -> Any:
    """Return a random Qwen2.5-VL, which sees pictures in patches of so many pixels."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    text = {**sizes, **ends, "vocab_size": len(tokenizer), "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 8, "num_heads": 1, "intermediate_size": 8, "out_hidden_size": WIDTH}
    vision |= {"patch_size": patch, "window_size": 8 * patch}
    marks = dict(zip(("vision_start", "vision_end", "image", "video"), map(tokenizer.convert_tokens_to_ids, VISION), strict=True))
    tokens = {f"{name}_token_id": number for name, number in marks.items() if number is not None}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))


def film_autoencoder() -> Any:
    """Return a random autoencoder of films that makes 8 by 8 latents of 32 pixels, with a mean and a deviation for each channel."""
    moments = {"latents_mean": [0.1 * number for number in range(4)], "latents_std": [1.0 + 0.2 * number for number in range(4)]}
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True]}
    return AutoencoderKLQwenImage(**sizes, **moments)


def gemma_tokenizer(text: str) -> Any:
    """Return a tokenizer that knows the words of the shapes world and of `text`, and letters."""
    words = [*(f"▁{word}" for word in VOCABULARY), *dict.fromkeys(f"▁{word}" for word in re.findall(r"[a-zA-Z-]+", text))]
    letters = sorted({*"▁abcdefghijklmnopqrstuvwxyz<>.-", *text.replace(" ", "▁")})
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *letters, *(a + b for a, b in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return GemmaTokenizer(vocab=vocab, merges=merges, model_max_length=512)


def glm_tokenizer() -> Any:
    """Return a tokenizer of the shapes world's words that begins every prompt with two marks and pads in front, as GLM-4's does."""
    tokenizer = worded_qwen_tokenizer("").backend_tokenizer
    marks = ["[gMASK]", "<sop>"]
    tokenizer.add_special_tokens(marks)
    numbers = [(mark, tokenizer.token_to_id(mark)) for mark in marks]
    tokenizer.post_processor = TemplateProcessing(single=f"{' '.join(marks)} $A", special_tokens=numbers)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", padding_side="left", model_max_length=512)
