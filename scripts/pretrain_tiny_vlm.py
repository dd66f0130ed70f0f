"""Train a small vision-language model from nothing to judge drawings of the shapes world, for the scorer `vlm`.

    python scripts/pretrain_tiny_vlm.py --output_dir outputs/tiny-vlm

It answers the four questions that the scorer asks with `aspects: [alignment]`: a mark, or the better of two, in JSON or by the first
token. The world's exact judge says what is right. First the eyes learn, which are then left as they are: a picture's token is to be near
the words of what it shows. Then the language model learns the answers. The fixed sentences of the scorer's questions, and its
answers, are one token each. A killed run goes on from its last checkpoint in --work_dir; remove that folder to start afresh.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from tqdm.auto import tqdm
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor, LlamaConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from diffalign.data.world.captions import caption
from diffalign.data.world.judge import read
from diffalign.data.world.scenes import ATTRIBUTES, SIZE, Scene, all_scenes, render, withheld_scenes
from diffalign.rewards.scorers.wording import Wording, wording
from pretrain_tiny_lm import new_tokenizer
from rounds import steps

USER, ANSWER, END = "<|user|>", "<|assistant|>", "<end_of_utterance>"
AROUND, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"  # of Idefics3
TEMPLATE = (
    f"{{% for message in messages %}}{USER}{{% for part in message['content'] %}}"
    f"{{% if part['type'] == 'image' %}}{{{{ loop.index }}}}{IMAGE}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    f"{{% endfor %}}{{% endfor %}}{{% if add_generation_prompt %}}{ANSWER}{{% endif %}}"
)
WIDTH, PATCH = 64, 8  # of both networks; pixels
SHOWN = f"{AROUND}{GLOBAL}{IMAGE}{AROUND}"  # a picture, which is one token, as the processor writes it
NOISE, SHARPNESS = 0.02, 4.0  # of pixels in [-1, 1]; of the nearness of tokens and words
QUESTIONS: dict[tuple[str, str], Wording] = {
    (protocol, answer): wording(template="aspects", protocol=protocol, answer=answer, aspects=["alignment"])
    for protocol in ("pointwise", "pairwise")
    for answer in ("json", "logprobs")
}
Take = Callable[[Tensor], None]


def answers_of(protocol: str, answer: str) -> list[str]:
    """Return the answers to a question, from the worst for the (first) picture to the best."""
    if protocol == "pairwise":
        return ["B", "A"] if answer == "logprobs" else [json.dumps({"better": word}) for word in ("second", "tie", "first")]
    template = QUESTIONS[protocol, answer].template
    return [str(mark) if answer == "logprobs" else json.dumps({"alignment": mark}) for mark in range(template.low, template.high + 1)]


def new_processor() -> Any:
    """Return the processor: 64x64 pictures as they are, a token each, and the scorer's sentences as one token each."""
    tokenizer = new_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AROUND, GLOBAL, IMAGE, END, USER, ANSWER]})
    sentences = [part for words in QUESTIONS.values() for part in words.question("\0").split("\0")]
    tokenizer.add_tokens(list(dict.fromkeys([*sentences, *(text for kind in QUESTIONS for text in answers_of(*kind))])))
    tokenizer.eos_token, tokenizer.padding_side = END, "left"
    edge: Any = {"longest_edge": SIZE}
    pictures = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(pictures, tokenizer, image_seq_len=1, chat_template=TEMPLATE)


def new_model(processor: Any) -> Any:
    """Return the model: an Idefics3 of half a million numbers."""
    tokenizer = processor.tokenizer
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    text = {"num_hidden_layers": 3, "num_key_value_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.08}
    vision = {"num_hidden_layers": 2, "image_size": SIZE, "patch_size": PATCH, "initializer_range": 0.05}
    config = Idefics3Config(
        vision_config=vision | sizes,
        text_config=LlamaConfig(**text, **sizes, **ends, vocab_size=len(tokenizer), tie_word_embeddings=True),
        scale_factor=SIZE // PATCH,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
    )
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def pixels(pictures: Sequence[Any], rng: np.random.Generator) -> Tensor:
    """Return pictures (N, 1, 3, 64, 64) in [-1, 1], as the processor does, and noise."""
    x = np.stack([np.asarray(picture) for picture in pictures]) / 127.5 - 1.0
    x += NOISE * rng.standard_normal(x.shape)
    return torch.from_numpy(x.clip(-1.0, 1.0).astype(np.float32)).permute(0, 3, 1, 2)[:, None].contiguous()


def tokens_of(model: Any, x: Tensor) -> Tensor:
    """Return what the eyes make (N, WIDTH) of pixels."""
    return torch.cat(model.model.get_image_features(x).pooler_output)


def code_of(attributes: Mapping[str, str]) -> tuple[int, ...]:
    """Return the place of each value among its attribute's (5,), -1 for one that is missing."""
    return tuple(values.index(attributes[name]) if name in attributes else -1 for name, values in ATTRIBUTES.items())


def seen_scenes() -> list[Scene]:
    withheld = withheld_scenes()
    return [scene for scene in all_scenes() if scene not in withheld]


def training(args: argparse.Namespace, model: Any, parameters: Sequence[Tensor], part: str, count: int) -> Iterator[tuple[int, Take]]:
    """Yield the steps of a stage that are still to do, each with what takes it by its loss."""
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=count, pct_start=0.1, cycle_momentum=False)

    def take(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()

    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    for step in steps(args.work_dir / f"{part}.pt", state, count, 100, part):
        yield step, take


def words_of(tokenizer: Any) -> list[Tensor]:
    """Return the tokens of each attribute's values, with a space before them."""
    return [torch.tensor(tokenizer.convert_tokens_to_ids([f"\u0120{value}" for value in values])) for values in ATTRIBUTES.values()]


def train_eyes(args: argparse.Namespace, model: Any, tokenizer: Any) -> None:
    """Teach a picture's token to be near the words of its five attributes, among all of their kind."""
    words = words_of(tokenizer)
    table, scenes = model.get_input_embeddings().weight, seen_scenes()
    eyes = [*model.model.vision_model.parameters(), *model.model.connector.parameters(), table]
    for step, take in training(args, model, eyes, "eyes", args.eye_steps):
        rng = np.random.default_rng([args.seed, 1, step])
        shown = [scenes[i] for i in rng.integers(len(scenes), size=32)]
        tokens = tokens_of(model, pixels([render(scene, rng) for scene in shown], rng))
        codes = torch.tensor([code_of(scene.attributes()) for scene in shown])
        losses = [cross_entropy(SHARPNESS * tokens @ table[ids].T, codes[:, place]) for place, ids in enumerate(words)]
        take(torch.stack(losses).sum())


@torch.no_grad()
def shorten(args: argparse.Namespace, model: Any) -> None:
    """Make a picture's token about as long as a word's: what the layers add to a long one would be lost in it."""
    rng = np.random.default_rng([args.seed, 4])
    tokens = tokens_of(model, pixels([render(scene, rng) for scene in seen_scenes()[::40]], rng))
    words = model.get_input_embeddings().weight
    model.model.connector.modality_projection.proj.weight *= words.norm(dim=-1).mean() / tokens.norm(dim=-1).mean()


@dataclass(frozen=True, slots=True)
class Pool:
    """Drawings: what the eyes make of them (N, WIDTH), what the judge reads in them (N, 5), and which show a code."""

    tokens: Tensor
    codes: np.ndarray
    rows: Mapping[tuple[int, ...], Sequence[int]]


@torch.no_grad()
def new_pool(args: argparse.Namespace, model: Any) -> Pool:
    """Return drawings of scenes that are not withheld."""
    rng, scenes, tokens, codes, rows = np.random.default_rng([args.seed, 2]), seen_scenes(), [], [], defaultdict(list)
    for _ in tqdm(range(args.pictures // 64), desc="drawings"):
        pictures = [render(scenes[i], rng) for i in rng.integers(len(scenes), size=64)]
        tokens.append(tokens_of(model, pixels(pictures, rng)))
        codes += [code_of(read(picture).attributes) for picture in pictures]
    for row, code in enumerate(codes):
        rows[code].append(row)
    return Pool(torch.cat(tokens), np.array(codes), rows)


def near(pool: Pool, code: np.ndarray, rng: np.random.Generator) -> int:
    """Return a drawing that differs from a code in some attributes: often in none or one."""
    changed = code.copy()
    for place in rng.permutation(len(code))[: rng.choice([0, 1, 2, 3, 5], p=[0.25, 0.35, 0.2, 0.1, 0.1])]:
        changed[place] = rng.integers(len(list(ATTRIBUTES.values())[place]))
    rows = pool.rows.get(tuple(changed)) or range(len(pool.codes))
    return int(rows[int(rng.integers(len(rows)))])


def chances_of(kind: tuple[str, str], shown: Sequence[float]) -> np.ndarray:
    """Return the chance of each answer, from the shares of the prompt that the pictures show.

    The expected mark is exact by the first token, and rounded in JSON; of two that are equally good either letter is as likely.
    """
    worth = shown[0] if kind[0] == "pointwise" else (1.0 + np.sign(shown[0] - shown[1])) / 2.0
    count = len(answers_of(*kind))
    place = worth * (count - 1)
    return np.clip(1.0 - np.abs(np.arange(count) - (round(place) if kind[1] == "json" else place)), 0.0, 1.0)


def lesson(pool: Pool, kind: tuple[str, str], rng: np.random.Generator) -> tuple[str, list[int], np.ndarray]:
    """Return a question as the processor writes it, its drawings, and the chance of each answer."""
    code = pool.codes[int(rng.integers(len(pool.codes)))]
    keep = rng.choice([0.0, 0.5, 1.0], p=[0.15, 0.55, 0.3])
    named = np.array([name == "shape" or rng.random() < keep for name in ATTRIBUTES]) & (code >= 0)
    text = caption({name: values[i] for (name, values), i, keeps in zip(ATTRIBUTES.items(), code, named, strict=True) if keeps})
    rows = [near(pool, code, rng) for _ in range(2 if kind[0] == "pairwise" else 1)]
    shown = [float((pool.codes[row] == code)[named].mean()) for row in rows]
    shows = "".join(f"{number}{SHOWN}" for number in range(1, len(rows) + 1))
    return f"{USER}{shows}{QUESTIONS[kind].question(text)}{ANSWER}", rows, chances_of(kind, shown)


class Noticing(nn.Module):
    """What is taught beside the answers, and not kept: after two layers each word of the prompt tells which pictures show it."""

    def __init__(self, words: Sequence[Tensor], vocabulary: int) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)
        self.place, self.value = torch.full((2, vocabulary), -1)
        for place, ids in enumerate(words):
            self.place[ids], self.value[ids] = place, torch.arange(len(ids))

    def forward(self, states: Tensor, ids: Tensor, codes: Tensor) -> Tensor:
        """Return the loss of states (B, L, WIDTH) of tokens (B, L), with what the pictures show (B, K, 5)."""
        place, pictures = self.place[ids], codes.shape[1]
        shown = codes.gather(2, place.clamp(min=0)[:, None].expand(-1, pictures, -1)) == self.value[ids][:, None]
        logits = self.head(states)[..., :pictures]
        return binary_cross_entropy_with_logits(logits[place >= 0], shown.transpose(1, 2)[place >= 0].float())


def train_answers(args: argparse.Namespace, model: Any, tokenizer: Any, pool: Pool) -> None:
    """Teach the language model the answers, one kind of question a step, pairs twice as often."""
    kinds = [*QUESTIONS, *(kind for kind in QUESTIONS if kind[0] == "pairwise")]
    ids = {kind: torch.tensor(tokenizer.convert_tokens_to_ids(answers_of(*kind))) for kind in QUESTIONS}
    noticing = Noticing(words_of(tokenizer), len(tokenizer))
    whole = nn.ModuleList([model, noticing])
    speaking = [*model.model.text_model.parameters(), *noticing.parameters()]  # the head is the table of words
    for step, take in training(args, whole, speaking, "answers", args.steps):
        rng = np.random.default_rng([args.seed, 3, step])
        kind = kinds[step % len(kinds)]
        texts, rows, chances = zip(*(lesson(pool, kind, rng) for _ in range(args.batch_size)), strict=True)
        batch = tokenizer(list(texts), padding=True, return_tensors="pt")
        picked = torch.multinomial(expected := torch.from_numpy(np.stack(chances)).float(), 1)
        inputs = {"input_ids": torch.cat([batch.input_ids, ids[kind][picked]], dim=1)}
        inputs["attention_mask"] = nn.functional.pad(batch.attention_mask, (0, 1), value=1)
        eyes: Any = BaseModelOutputWithPooling(pooler_output=pool.tokens[np.concatenate(rows)])  # pyright: ignore[reportArgumentType]  # a tensor
        given = model(**inputs, mm_encoder_outputs={"image": eyes}, logits_to_keep=2, use_cache=False, output_hidden_states=True)
        target = torch.zeros(len(texts), given.logits.shape[-1]).index_add(1, ids[kind], expected)
        ends = torch.full((len(texts),), tokenizer.eos_token_id)
        answered = cross_entropy(given.logits[:, 0], target) + 0.1 * cross_entropy(given.logits[:, 1], ends)
        take(answered + noticing(given.hidden_states[2], inputs["input_ids"], torch.from_numpy(pool.codes[np.array(rows)])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tiny-vlm"))
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/pretrain_tiny_vlm"), help="checkpoints of a run in progress")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eye_steps", type=int, default=3000)
    parser.add_argument("--pictures", type=int, default=12_800, help="drawings that the questions are about")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    set_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    processor = new_processor()
    model = new_model(processor)
    train_eyes(args, model, processor.tokenizer)
    shorten(args, model)
    train_answers(args, model, processor.tokenizer, new_pool(args, model))
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
