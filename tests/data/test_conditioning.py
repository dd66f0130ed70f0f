"""Conditioning images: read, kept, cropped and flipped with their pictures, and no difference to tables without them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from diffalign.core.errors import RecordError
from diffalign.data.batch import CachedPairs, Encoders, LivePairs
from diffalign.data.export import export_pairs
from diffalign.data.importing import import_dataset
from diffalign.data.inspect import render_summary, summary
from diffalign.data.pictures import encode_image
from diffalign.data.pixels import Framing, candidate_pixels, conditioning_pixels, record_generator
from diffalign.data.problems import validate
from diffalign.data.records import Candidate, Record
from diffalign.data.table import FORMER, MANIFEST, ROWS, read_table, to_row, write_table
from diffalign.data.transforms import orient
from diffalign.data.view import View
from tests.data.image_tables import image_pair, png

SIZES = [(24, 16), (16, 24)]
FRAMING = Framing(8, random_crop=True, random_flip=True)


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encode_image(Image.fromarray(levels))


def shared(number: int, prob: float = 1.0) -> Record:
    """A pair with one conditioning image for both candidates."""
    return image_pair(number, noise(number), noise(100 + number), prob=prob, conditioning_image=noise(200 + number))


def of_each(number: int, prob: float = 1.0) -> Record:
    """One picture twice, with a conditioning image for each."""
    picture = noise(number)
    both = (Candidate(image=picture, conditioning_image=noise(300)), Candidate(image=picture, conditioning_image=noise(301)))
    return image_pair(number, picture, picture, prob=prob, candidates=both)


def images(record: Record) -> list[bytes | None]:
    return [*(c.image for c in record.candidates), record.conditioning_image, *(c.conditioning_image for c in record.candidates)]


def test_records_come_back_as_they_were_written(tmp_path):
    records = [shared(0), of_each(1), image_pair(2, noise(7), noise(8))]
    table = write_table(tmp_path / "t", records)
    assert [images(one) for one in table] == [images(one) for one in records]
    assert [images(one) for one in View(table, [orient])] == [images(one) for one in records]
    assert table.manifest["repeats"] == {
        "same": 0,
        "opposite": 0,
        "disputed": 0,
        "equal": 0,
    }  # one picture under two conditions is no pair of equals
    assert [one.conditioning_images for one in records] == [(noise(200),) * 2, (noise(300), noise(301)), (None, None)]


def test_a_table_of_the_former_schema_opens_with_its_fingerprint(tmp_path):
    records = [image_pair(0, png(8, 8), png(8, 8, "blue"), prob=1.0), image_pair(1, png(8, 8, "green"), png(8, 8), prob=0.0)]
    table = write_table(tmp_path / "t", records)
    # The hash as it was before conditioning images, by hand.
    digest = hashlib.sha256()
    for one in records:
        for candidate in one.candidates:
            digest.update(hashlib.sha256(candidate.image or b"").digest())
            digest.update(repr(([], None, None)).encode())
        digest.update(repr((one.id, one.prompt, one.prob, one.user, [])).encode())
    assert table.fingerprint == digest.hexdigest()[:32]
    former = tmp_path / "former"
    former.mkdir()
    (former / MANIFEST).write_text(json.dumps(table.manifest))
    rows = [{name: value for name, value in to_row(one).items() if name in FORMER.names} for one in records]
    for row in rows:
        row["candidates"] = [{name: value for name, value in c.items() if name != "conditioning_image"} for c in row["candidates"]]
    with pa.OSFile(str(former / ROWS), "wb") as sink, pa.ipc.new_file(sink, FORMER) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=FORMER))
    opened = read_table(former)
    assert list(opened) == list(table)
    assert opened.fingerprint == write_table(tmp_path / "again", opened).fingerprint == table.fingerprint
    assert [entry.order for entry in View(opened, [orient]).entries] == [(0, 1), (1, 0)]
    assert summary(opened)["conditioning_images"] == summary(table)["conditioning_images"] == {}


def test_a_conditioning_image_changes_the_fingerprint_and_tells_pairs_apart(tmp_path):
    plain = image_pair(0, noise(0), noise(1))
    tables = [plain, replace(plain, conditioning_image=noise(2)), replace(plain, conditioning_image=noise(3))]
    tables.append(replace(plain, candidates=tuple(replace(c, conditioning_image=noise(2)) for c in plain.candidates)))
    assert len({write_table(tmp_path / str(i), [one]).fingerprint for i, one in enumerate(tables)}) == 4
    both = write_table(tmp_path / "both", [tables[1], replace(tables[2], id="1")])
    assert both.manifest["repeats"]["same"] == 0


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_what_is_exported_is_imported_with_its_conditioning_images(suffix, tmp_path):
    records = [shared(0), of_each(1, prob=0.0), image_pair(2, noise(7), noise(8))]
    export_pairs(records, tmp_path / f"votes{suffix}")
    table = import_dataset(str(tmp_path / f"votes{suffix}"), tmp_path / "table")
    assert [images(one) for one in table] == [images(one) for one in records]
    assert "images for 1 records, images for 2 candidates" in render_summary(summary(table))


def write(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.name


def test_the_dataset_of_a_controlnet_script_is_pictures_to_learn_from(tmp_path):
    files = {"image": write(tmp_path / "a.png", noise(0)), "conditioning_image": write(tmp_path / "c.png", noise(1)), "text": "a star"}
    empty = files | {"conditioning_image": ""}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (files, files, empty)))
    table = import_dataset(str(tmp_path / "rows.jsonl"), tmp_path / "t", skip_bad=True)
    assert table.manifest["reader"] == "controlnet"
    assert table.manifest["rejected"][0]["where"].endswith("row 2")
    (record, _) = table
    assert (images(record), record.prompt, record.prob) == ([noise(0), noise(1), None], "a star", 1.0)


def test_rated_pictures_of_one_prompt_are_compared_under_one_conditioning_image_only(tmp_path):
    for number in range(4):
        write(tmp_path / f"{number}.png", noise(number))
    rows = [f"a star,{n}.png,{n % 2 + 2}.png,{n}" for n in range(2)] + ["a star,3.png,2.png,3"]
    (tmp_path / "rows.csv").write_text("\n".join(["prompt,image,condition,rating", *rows]))
    first, second = import_dataset(str(tmp_path / "rows.csv"), tmp_path / "t")
    if len(first.candidates) == 1:
        first, second = second, first
    assert first.conditioning_images == (noise(2), noise(2))
    assert second.conditioning_images == (noise(3),)


def test_a_folder_of_conditioning_images_lies_beside_the_pairs(tmp_path):
    for name, seed in {"w/a.png": 0, "l/a.png": 1, "conditioning_image/a.png": 2, "w/b.png": 3, "l/b.png": 4}.items():
        write(tmp_path / "votes" / name, noise(seed))
    for name in "ab":
        write(tmp_path / "votes" / "w" / f"{name}.txt", b"a star")
    table = import_dataset(str(tmp_path / "votes"), tmp_path / "t", skip_bad=True)
    assert [images(one) for one in table] == [[noise(0), noise(1), noise(2), None, None]]
    assert "b" in table.manifest["rejected"][0]["reason"]
    assert "0 conditioning images" in table.manifest["rejected"][0]["reason"]


@pytest.mark.parametrize("size", SIZES)
def test_a_conditioning_image_is_cropped_and_flipped_as_its_picture(size):
    """Where a picture is its own conditioning image, both are the same pixels for every draw."""
    pictures = [noise(seed, size) for seed in (0, 1)]
    own = image_pair(0, *pictures, candidates=tuple(Candidate(image=picture, conditioning_image=picture) for picture in pictures))
    common = image_pair(0, pictures[0], pictures[0], conditioning_image=pictures[0])
    places = set()
    for record in (own, common):
        for variant in range(12):
            pixels, frames = candidate_pixels(record, FRAMING, record_generator(record.id, variant))
            conditioning = conditioning_pixels(record, FRAMING, record_generator(record.id, variant))
            assert conditioning.dtype == torch.uint8
            assert torch.equal(conditioning.float() / 127.5 - 1.0, pixels)
            places.add(tuple(frames[0].tolist()))
    assert len(places) > 3


def encoders() -> Encoders:
    def image(pixels, noise):
        return torch.nn.functional.adaptive_avg_pool2d(pixels, (2, 2))[:, :2] + noise

    def prompt(prompts):
        return {"embeds": torch.tensor([[float(len(one))] for one in prompts])}

    return Encoders(image, prompt, lambda height, width: (2, 2, 2), "fake")


@pytest.mark.parametrize("framing", [FRAMING, replace(FRAMING, buckets=((8, 12), (12, 8)))])
def test_live_and_cached_pairs_give_the_same_conditioning_images(framing, tmp_path):
    wide = [shared(0), of_each(1, prob=0.0)]
    high = [image_pair(n, noise(n, (16, 24)), noise(10 + n, (16, 24)), conditioning_image=noise(20 + n, (16, 24))) for n in (2, 3)]
    view = View(write_table(tmp_path / "t", wide + high), [orient])
    live = LivePairs(view, encoders(), framing, 2, conditioned=True)
    plain = CachedPairs(view, encoders(), framing, 2, tmp_path / "cache")  # a run without a ControlNet came first, in the same cache
    stored = CachedPairs(view, encoders(), framing, 2, tmp_path / "cache", conditioned=True)
    assert plain.folder == stored.folder
    for places in ([0, 1], [2, 3]):
        for epoch in range(3):
            first, second, without = (source.to_batch([source[i, epoch] for i in places]) for source in (live, stored, plain))
            assert first.conditioning is not None
            assert second.conditioning is not None
            assert without.conditioning is None
            assert torch.equal(first.conditioning, second.conditioning)
            assert first.conditioning.shape[:3] == (2, 2, 3)
            assert 0.0 <= first.conditioning.min() < first.conditioning.max() <= 1.0
    # The preferred candidate's comes first: record 1 prefers the second.
    turned = live.to_batch([live[1, 0]]).conditioning
    table_order = conditioning_pixels(view.table[1], framing, record_generator("1", 0), live.sizes[1]).float() / 255.0
    assert turned is not None
    assert torch.equal(turned[0], table_order.flip(0))


def test_what_does_not_fit_is_refused_with_its_record(tmp_path):
    pair = shared(0)
    other_shape = replace(pair, conditioning_image=noise(5, (24, 24)))
    for bad, fact in ((other_shape, "24x24"), (replace(pair, conditioning_image=b"no picture"), "does not decode")):
        with pytest.raises(RecordError, match=f"{pair.source}, conditioning image of candidate 0.*{fact}"):
            conditioning_pixels(bad, FRAMING, record_generator("0", 0))
        assert any(fact in problem and problem.startswith(pair.id) for problem in validate(write_table(tmp_path / fact[:3], [bad])))
    rounded = replace(pair, conditioning_image=noise(5, (11, 8)))  # 12 by 8 less a column
    assert conditioning_pixels(rounded, FRAMING, record_generator("0", 0)).shape == (2, 3, 8, 8)
    with pytest.raises(RecordError, match=f"{pair.source}, conditioning image of candidate 0: there is none"):
        conditioning_pixels(image_pair(0, noise(0), noise(1)), FRAMING, record_generator("0", 0))
    half = replace(pair, conditioning_image=None, candidates=(replace(pair.candidates[0], conditioning_image=noise(1)), pair.candidates[1]))
    for bad in (half, Record("0", "a", (Candidate(text="b"),), source="row 9", conditioning_image=noise(0))):
        with pytest.raises(RecordError, match=f"{bad.source}.*conditioning image"):
            bad.check()
