"""A prompt writer before and after training: rewrites that belong to their seeds, and pictures from equal noise."""

from __future__ import annotations

from PIL import Image

from diffalign.infer.text import before_after
from diffalign.infer.text.before_after import BeforeAfter


class Writer:
    """Writes the seed of each text into it."""

    def __init__(self, name):
        self.name = name

    def __call__(self, prompts, *, seed, num_return_sequences):
        return [f"{prompt} by {self.name}, {seed + i}" for prompt in prompts for i in range(num_return_sequences)]


def test_all_three_wordings_are_drawn_at_the_same_seeds(monkeypatch):
    calls = []

    def draw(pipe, prompts, seeds, **settings):
        calls.append((pipe, list(zip(prompts, seeds, strict=True)), settings))
        return [Image.new("L", (1, 1), number) for number, _ in enumerate(prompts)]

    monkeypatch.setattr(before_after, "draw", draw)
    writers = BeforeAfter(Writer("base"), Writer("run"), "pipe", {"num_inference_steps": 3})
    versions = writers.versions("a star", seed=5, images_per_prompt=2)
    assert [version.writer for version in versions] == ["prompt", "base", "trained"]
    assert [version.texts for version in versions] == [
        ("a star", "a star"),
        ("a star by base, 5", "a star by base, 6"),
        ("a star by run, 5", "a star by run, 6"),
    ]
    ((pipe, drawn, settings),) = calls
    assert (pipe, settings) == ("pipe", {"num_inference_steps": 3})
    assert drawn == [(text, seed) for version in versions for text, seed in zip(version.texts, (5, 6), strict=True)]
    assert [image.getpixel((0, 0)) for version in versions for image in version.images] == [0, 1, 2, 3, 4, 5]


def test_without_a_model_nothing_is_drawn():
    assert all(version.images == () for version in BeforeAfter(Writer("base"), Writer("run")).versions("a star"))
