"""Tables as people export them, imported without a word of documentation, or answered with one error that says what to do."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffalign.core.errors import RecordError
from diffalign.data.importing import import_dataset
from diffalign.data.pictures import decode_image
from diffalign.data.readers.detect import detect
from tests.data.image_files import JPEGS, put

PICTURES = {f"{side}{i}.jpg": 3 * (side == "b") + i for side in "ab" for i in range(3)}


def imported(folder: Path, name: str, **options: Any):
    return import_dataset(str(folder / name), folder / "table", overwrite=True, **options)


def sheet(*rows: list[str], separator: str = ",") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows(rows)
    return buffer.getvalue()


def labels(table: Any) -> list[tuple[str, float | None]]:
    return [(record.prompt, record.prob) for record in table]


def test_a_german_excel_sheet_is_imported_as_it_was_saved(tmp_path):
    rows = [["Prompt", "Image A", "Image B", "Winner", "Anmerkung"], ["Füchse", "pics\\a0.jpg", "pics\\b0.jpg", "B", "für später; prüfen"]]
    rows += [["ein Stern", "pics\\a1.jpg", "pics\\b1.jpg", "unentschieden", ""], ["", "", "", "", ""]]
    put(tmp_path, {f"pics/{name}": number for name, number in PICTURES.items()})
    for encoding in ("cp1252", "utf-8-sig", "utf-16"):
        (tmp_path / "Abstimmung.csv").write_bytes(sheet(*rows, separator=";").encode(encoding))
        with pytest.raises(RecordError, match=r"Abstimmung\.csv row 1: column `winner` is str 'unentschieden'.*df\['label_0'\] = .*line 3"):
            imported(tmp_path, "Abstimmung.csv")
        table = imported(tmp_path, "Abstimmung.csv", skip_bad=True)
        assert (labels(table), table.manifest["rejected_rows"]) == ([("Füchse", 0.0)], 1), encoding
        assert [c.image for c in table[0].candidates] == [JPEGS[0], JPEGS[3]]


def test_a_google_form_is_imported_where_it_names_its_pictures_and_else_answered_with_what_to_do(tmp_path):
    put(tmp_path, PICTURES)
    question = "Looking at both pictures, which one would you rather hang on your own wall? (A is on the left)"
    form = sheet(
        ["Timestamp", "Email Address", "Prompt", "Picture A", "Picture B", "Preference"],
        ["2026/11/01 9:00:00 AM GMT+1", "a@example.com", "a star", "a0.jpg", "b0.jpg", "Picture A"],
        ["2026/11/01 9:01:00 AM GMT+1", "b@example.com", "a ring, red", "a1.jpg", "b1.jpg", "No preference"],
    )
    (tmp_path / "form.csv").write_text(form, encoding="utf-8")
    assert labels(imported(tmp_path, "form.csv")) == [("a star", 1.0), ("a ring, red", 0.5)]
    (tmp_path / "form.csv").write_text(form.replace("Preference", question, 1), encoding="utf-8")
    with pytest.raises(RecordError, match=r"form\.csv row 0: no column says which of `picture_a` and `picture_b`.*df\['label_0'\]"):
        imported(tmp_path, "form.csv")
    (tmp_path / "form.csv").write_text(sheet(["Timestamp", question], ["2026/11/01 9:00:00", "A"]), encoding="utf-8")
    with pytest.raises(RecordError, match=r"form\.csv: no known layout\. Found columns Timestamp, Looking at both"):
        imported(tmp_path, "form.csv")


def test_label_studio_is_imported_from_each_of_its_exports(tmp_path):
    put(tmp_path, {f"upload/1/{name}": number for name, number in PICTURES.items()})
    data = [{"prompt": f"p{i}", "image1": f"/data/upload/1/a{i}.jpg", "image2": f"/data/upload/1/b{i}.jpg"} for i in range(3)]
    selected = [{"selected": "left"}, {"selected": "right"}]

    def annotation(value: dict[str, str], by: int = 7, **more: Any) -> dict[str, Any]:
        return {"completed_by": by, "result": [{"type": "pairwise", "from_name": "pw", "value": value}], **more}

    tasks = [{"id": i, "data": data[i], "annotations": [annotation(value)]} for i, value in enumerate(selected)]
    tasks[1]["annotations"].append(annotation({"selected": "left"}, by=8))
    tasks.append({"id": 3, "data": data[2], "annotations": [annotation({}, was_cancelled=True)]})
    flat = [row | {"id": i, "annotator": 7, "pw": [value]} for i, (row, value) in enumerate(zip(data, selected, strict=False))]
    table_rows = [[*[*row.values()][:-1], json.dumps(row["pw"])] for row in flat]
    put(
        tmp_path,
        {
            "tasks.json": json.dumps(tasks),
            "min.json": json.dumps(flat),
            "votes.csv": sheet([*flat[0]], *[[str(cell) for cell in row] for row in table_rows]),
        },
    )
    table = imported(tmp_path, "tasks.json", skip_bad=True)
    assert labels(table) == [("p0", 1.0), ("p1", 0.0), ("p1", 1.0)]
    assert [record.user for record in table] == ["7", "7", "8"]
    assert "skipped" in table.manifest["rejected"][0]["reason"]
    for name in ("min.json", "votes.csv"):
        table = imported(tmp_path, name)
        assert (labels(table), table[0].user) == ([("p0", 1.0), ("p1", 0.0)], "7"), name
        assert [c.image for c in table[1].candidates] == [JPEGS[1], JPEGS[4]]


def test_a_hub_dataset_is_imported_with_its_picture_structs(tmp_path):
    structs = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(JPEGS[:2])]
    row = {
        "caption": "a star",
        "image_0": structs[0],
        "image_1": structs[1],
        "label_0": 0.0,
        "label_1": 1.0,
        "user_id": 5,
        "extra": {"a": [1]},
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "data/train-00000-of-00001.parquet")
    table = imported(tmp_path, "data", split="train")
    assert (labels(table), table[0].user, [c.image for c in table[0].candidates]) == ([("a star", 0.0)] * 2, "5", JPEGS[:2])


def test_a_phones_pictures_are_imported_from_two_folders_and_a_single_folder_is_answered_with_what_to_do(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(picture, "JPEG", exif=exif)
    files: dict[str, Any] = {f"phone/{side}/IMG_{n}.JPG": picture.getvalue() for side in ("Good", "Bad") for n in (1234, 1235)}
    files |= {
        "phone/Good/IMG_1234.TXT": "ein Fuchs\u2019".encode("cp1252"),
        "phone/Good/IMG_1235.JPG.txt": "a ring",
        "phone/Good/.DS_Store": "x",
    }
    put(tmp_path, files)
    table = imported(tmp_path, "phone")
    assert [record.prompt for record in table] == ["ein Fuchs\u2019", "a ring"]
    assert decode_image(table[0].candidates[0].image or b"", "").size == (20, 40)
    put(tmp_path, {"camera/IMG_1234.JPG": picture.getvalue(), "camera/IMG_1234.txt": "ein Fuchs"})
    with pytest.raises(RecordError, match=r"no image pairs.*expected folders w/ and l/"):
        imported(tmp_path, "camera")


SIDES = ["w l", "W L", "win lose", "Winner Loser", "Chosen REJECTED", "preferred dispreferred", "good bad", "Better Worse"]


def test_folders_are_named_as_people_name_them(tmp_path):
    for sides in SIDES:
        first, second = sides.split()
        put(tmp_path, {f"{sides}/{first}/a.png": 0, f"{sides}/{second}/a.jpg": 1, f"{sides}/{first}/a.caption": "a star"})
        (record,) = imported(tmp_path, sides)
        assert [c.image for c in record.candidates] == JPEGS[:2], sides


def test_names_pair_up_however_their_letters_are_composed(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "f\u00fchl") for form in ("NFC", "NFD"))
    put(tmp_path, {f"x/w/{composed}.png": 0, f"x/l/{decomposed}.png": 1, f"x/w/{composed}.txt": "a star"})
    assert [record.prompt for record in imported(tmp_path, "x")] == ["a star"]
    rows = json.dumps({"file_name": f"w/{decomposed}.png", "prompt": "a ring"})
    put(tmp_path, {f"y/w/{composed}.png": 0, f"y/l/{composed}.png": 1, "y/metadata.jsonl": rows})
    assert [record.prompt for record in imported(tmp_path, "y")] == ["a ring"]


def test_captions_come_from_any_metadata_table_and_a_bad_line_of_it_costs_its_row_alone(tmp_path):
    pair: dict[str, Any] = {"w/a.png": 0, "l/a.png": 1}
    rows = [{"file_name": "w/a.png", "caption": "a star"}]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    metadata = {
        "metadata.jsonl": json.dumps({"file_name": "w\\a.png", "text": "a star"}),
        "metadata.csv": "file_name;prompt\r\nw/a.png;a star\r\n",
        "Metadata.parquet": buffer.getvalue(),
    }
    for name, content in metadata.items():
        put(tmp_path, {f"{name} set/{file}": data for file, data in (pair | {name: content}).items()})
        assert [record.prompt for record in imported(tmp_path, f"{name} set")] == ["a star"], name
    put(tmp_path, {f"bad/{file}": data for file, data in (pair | {"metadata.jsonl": metadata["metadata.jsonl"] + "\n{half\n"}).items()})
    table = imported(tmp_path, "bad", skip_bad=True)
    assert (labels(table), [row["where"][-21:] for row in table.manifest["rejected"]]) == ([("a star", 1.0)], ["/metadata.jsonl row 1"])


def test_what_is_no_picture_in_a_folder_of_pairs_is_listed(tmp_path):
    put(tmp_path, {"w/a.png": 0, "l/a.png": 1, "w/a.txt": "a star", "w/b.docx": "x", "l/b.png": 1})
    table = import_dataset(str(tmp_path), tmp_path / "table", skip_bad=True)
    assert (len(table), ["b.docx" in row["reason"] for row in table.manifest["rejected"]]) == (1, [True])


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind.endswith("gz") else "w") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_archives_are_imported_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folders = {"pairs/w/a.png": JPEGS[0], "pairs/l/a.png": JPEGS[1], "pairs/w/a.txt": b"a star", "__MACOSX/pairs/w/._a.png": b"x"}
    rows = {
        "set/votes.csv": b"prompt,image_0,image_1,label_0\na star,p/a.png,p/b.png,1\n",
        "set/p/a.png": JPEGS[0],
        "set/p/b.png": JPEGS[1],
    }
    shard: dict[str, bytes] = {}
    for i in range(2):
        shard |= {f"{i:04}.jpg_0": JPEGS[0], f"{i:04}.jpg_1": JPEGS[1], f"{i:04}.json": b'{"caption": "a star", "label_0": 1}'}
    named = {"0.chosen.png": JPEGS[0], "0.rejected.png": JPEGS[1], "0.txt": b"a star"}
    for kind in ("zip", "tar", "tar.gz", "tgz"):
        for name, files in {"folders": folders, "rows": rows, "shard": shard, "named": named}.items():
            if kind == "zip" and name in ("shard", "named"):
                continue
            (tmp_path / f"{name}.{kind}").write_bytes(packed(kind, files))
            table = imported(tmp_path, f"{name}.{kind}")
            assert {(record.prompt, record.prob) for record in table} == {("a star", 1.0)}, (name, kind)
            assert [c.image for c in table[0].candidates] == JPEGS[:2]
            assert f"{name}.{kind}" in table[0].source
            assert not list((tmp_path / "temporary").iterdir())


def test_an_archive_that_leads_outside_or_is_a_bomb_is_refused_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    table = b"prompt\nx\n"
    for kind in ("zip", "tar"):
        for name in ("../out.csv", "/tmp/out.csv", "a/../../out.csv", "C:\\out.csv", "..\\out.csv"):
            (tmp_path / f"a.{kind}").write_bytes(packed(kind, {"votes.csv": table, name: table}))
            with pytest.raises(RecordError, match=rf"a\.{kind}: the entry .*out\.csv.* leads out of the archive"):
                imported(tmp_path, f"a.{kind}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("votes.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        real = tarfile.TarInfo("other.csv")
        archive.addfile(real)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    with pytest.raises(RecordError, match=r"a\.tar: the entry 'votes\.csv' is a link"):
        imported(tmp_path, "a.tar")
    monkeypatch.setattr("diffalign.data.readers.archives.LEAST", 100_000)
    (tmp_path / "a.zip").write_bytes(packed("zip", {"votes.csv": bytes(10_000_000)}))
    with pytest.raises(RecordError, match=r"a\.zip: unpacks to"):
        imported(tmp_path, "a.zip")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:500])
    with pytest.raises(RecordError, match=r"a\.zip: cannot be unpacked"):
        imported(tmp_path, "a.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip", "temporary"]
    assert not list((tmp_path / "temporary").iterdir())


def test_single_candidates_with_labels_or_ratings_become_rankings_of_their_prompts(tmp_path):
    put(tmp_path, PICTURES)
    header = ["Prompt", "image", "MOS"]
    rated = sheet(header, ["a star", "a0.jpg", "2,5"], ["a ring", "a1.jpg", "3"], ["a star", "b0.jpg", "4.5"], ["a star", "b1.jpg", "2.5"])
    put(tmp_path, {"rated.csv": rated})
    star, ring = sorted(imported(tmp_path, "rated.csv"), key=lambda record: -len(record.candidates))
    assert [(c.image, c.rank, c.scores) for c in star.candidates] == [
        (JPEGS[0], 2.0, {"mos": 2.5}),
        (JPEGS[3], 1.0, {"mos": 4.5}),
        (JPEGS[4], 2.0, {"mos": 2.5}),
    ]
    assert (ring.prob, len(ring.candidates)) == (None, 1)
    texts = [("q", "yes", True), ("q", "no", False), ("r", "maybe", False), ("s", "sure", True)]
    (tmp_path / "kto.jsonl").write_text(
        "".join(json.dumps(dict(zip(("prompt", "completion", "label"), row, strict=True))) + "\n" for row in texts)
    )
    q, r, s = imported(tmp_path, "kto.jsonl")
    assert [(c.text, c.rank) for c in q.candidates] == [("yes", 1.0), ("no", 2.0)]
    assert (q.prob, r.prob, s.prob) == (None, 0.0, 1.0)
    put(tmp_path, {"liked.csv": sheet(["caption", "file_name", "label"], ["a star", "a0.jpg", "good"], ["a star", "b0.jpg", "Bad"])})
    (record,) = imported(tmp_path, "liked.csv")
    assert [c.rank for c in record.candidates] == [1.0, 2.0]
    for column, up, down in (("thumbs", "\U0001f44d", "\U0001f44e"), ("like", "Thumbs up", "thumbs-down"), ("stars", "5", "2")):
        put(tmp_path, {"v.csv": sheet(["caption", "file_name", column], ["a star", "a0.jpg", down], ["a star", "b0.jpg", up])})
        assert [c.rank for c in imported(tmp_path, "v.csv")[0].candidates] == [2.0, 1.0], column
    put(tmp_path, {"liked.csv": sheet(["caption", "file_name", "label"], ["a star", "a0.jpg", "landscape"])})
    with pytest.raises(RecordError, match=r"liked\.csv row 0: column `label` is str 'landscape'"):
        imported(tmp_path, "liked.csv")


def test_a_ranking_has_the_user_who_judged_all_of_it(tmp_path):
    put(tmp_path, PICTURES)
    rows = [
        ["a star", "a0.jpg", "1", "ann"],
        ["a star", "b0.jpg", "0", "ben"],
        ["a ring", "a1.jpg", "1", "ann"],
        ["a ring", "b1.jpg", "0", "ann"],
    ]
    put(tmp_path, {"v.csv": sheet(["prompt", "image", "liked", "user_id"], *rows)})
    assert {record.prompt: record.user for record in imported(tmp_path, "v.csv")} == {"a star": None, "a ring": "ann"}


def test_lists_of_pictures_are_pairs_or_rankings(tmp_path):
    put(tmp_path, PICTURES)
    pair = {"prompt": "a star", "images": ["a0.jpg", "b0.jpg"], "winner": 1}
    ranking = {"prompt": "a star", "images": ["a0.jpg", "b0.jpg", "a1.jpg"], "ranking": [2, 1, 3]}
    put(tmp_path, {"pair.json": json.dumps([pair]), "ranking.json": json.dumps([ranking])})
    assert labels(imported(tmp_path, "pair.json")) == [("a star", 0.0)]
    (record,) = imported(tmp_path, "ranking.json")
    assert [c.rank for c in record.candidates] == [2.0, 1.0, 3.0]


def test_a_layout_that_nearly_fits_is_answered_with_what_it_lacks(tmp_path):
    cases = {
        "no prompt": ({"image_0": "a0.jpg", "image_1": "b0.jpg", "label_0": 1}, "no column `prompt`"),
        "a pair without a vote": ({"caption": "p", "jpg_0": "a0.jpg", "jpg_1": "b0.jpg"}, "no column says which of `jpg_0` and `jpg_1`"),
        "no rejected": ({"prompt": "p", "chosen": "a0.jpg", "score": 1}, "`rejected`"),
    }
    for name, (row, fact) in cases.items():
        put(tmp_path, PICTURES | {"v.json": json.dumps([row])})
        with pytest.raises(RecordError) as error:
            imported(tmp_path, "v.json")
        assert "v.json" in str(error.value), name
        assert fact in str(error.value), str(error.value)


def test_a_file_that_is_no_table_does_not_hide_the_others_of_its_folder(tmp_path):
    put(tmp_path, PICTURES | {"a-prompts.json": '["a star", "a ring"]'})
    put(tmp_path, {"votes.csv": "prompt,image_0,image_1,label_0\n" + "a star,a0.jpg,b0.jpg,1\n" * 3})
    assert detect(str(tmp_path)) == "columns"
    with pytest.raises(RecordError, match=r"a-prompts\.json row 0: found str 'a star'"):
        import_dataset(str(tmp_path), tmp_path / "t")
    table = import_dataset(str(tmp_path), tmp_path / "t", skip_bad=True)
    assert (len(table), table.manifest["rejected_rows"]) == (3, 2)


def test_what_stands_in_the_place_of_a_table_is_named_with_its_cure(tmp_path):
    cases: dict[str, tuple[str | bytes, str]] = {
        "v.xlsx": (b"PK\x03\x04", "Save As, CSV UTF-8"),
        "v.pkl": (b"\x80\x04", "runs code"),
        "page.csv": ("<!DOCTYPE html><html>Sign in</html>", "a web page"),
        "lfs.parquet": ("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "git lfs pull"),
        "form.csv": ("Person,Q1\nann,A\n", "df.rename(columns={'Person': 'image_0', ...})"),
        "four.csv": ("prompt,image_0,image_1,image_2,winner\np,a0.jpg,b0.jpg,a1.jpg,0\n", "`image_2`"),
        "plain.csv": ("prompt,image,moons\np,a0.jpg,5\n", "no column of labels or ratings"),
    }
    for name, (content, fact) in cases.items():
        put(tmp_path, PICTURES | {name: content})
        with pytest.raises(RecordError) as error:
            imported(tmp_path, name)
        assert name in str(error.value)
        assert fact in str(error.value), str(error.value)


def test_rows_of_ranked_pictures_become_rankings(tmp_path):
    put(tmp_path, PICTURES | {"v.csv": "prompt,image,rank\np,a0.jpg,2\np,b0.jpg,1\n"})
    (record,) = imported(tmp_path, "v.csv")
    assert ([c.rank for c in record.candidates], record.candidates[0].scores) == ([2.0, 1.0], {})


def test_an_unreadable_file_costs_none_of_the_others_of_its_folder(tmp_path):
    rows = "prompt,image_0,image_1,label_0\n" + "a star,a0.jpg,b0.jpg,1\n"
    put(tmp_path / "set", PICTURES | {"a.csv": "", "b.parquet": b"half", "c.csv": rows})
    table = imported(tmp_path, "set", skip_bad=True)
    assert (len(table), [row["where"][-9:] for row in table.manifest["rejected"]]) == (1, ["set/a.csv", "b.parquet"])
    with pytest.raises(RecordError, match=r"a\.csv: the file is empty"):
        imported(tmp_path, "set")
