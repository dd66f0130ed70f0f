"""What the compare page offers: every model there is, strengths of one, and a download that other programs read."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from diffalign.app import download
from diffalign.app.arena import SCALES, Arena
from diffalign.app.background import Background
from diffalign.app.commands import typed
from diffalign.app.download import zipped
from diffalign.app.jobs import JOB, Queue
from diffalign.app.options import AppConfig
from diffalign.app.pages.compare import Gallery
from diffalign.app.pages.shown import flip, sheet
from diffalign.app.pages.strength import strength_sheet, strengths_of
from diffalign.app.voters import AccessError, Account, Accounts
from diffalign.core.errors import ConfigError
from diffalign.core.runs import model_name
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from tests.app.forks import Forks, forking
from tests.infer.runs import write_run
from tests.micro_models import picture, stock, write_micro


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def gallery(tmp_path, base):
    accounts = Accounts({"ada": Account("long enough", "owner"), "bob": Account("long enough", "voter")})
    stores = [VoteStore(tmp_path / f"{name}.db") for name in ("arena", "strengths")]
    arenas = [Arena(store, Background(tmp_path / "log.txt")) for store in stores]
    config = AppConfig(pretrained_model_name_or_path=str(base), runs=[str(write_run(tmp_path / "named", base))])
    yield Gallery(config, arenas[0], arenas[1], Queue(tmp_path / "jobs"), accounts)
    for store in stores:
        store.close()


def test_base_named_runs_results_bests_and_checkpoints_are_offered_and_nothing_unfinished(gallery, base):
    assert gallery.usual() == ["base", "named"]
    folder = gallery.queue.folder / "mine"
    for part in ("", "best", "checkpoint-5", "checkpoint-10"):
        write_run(folder / "mine" / part, base)
    (folder / "mine" / "checkpoint-20").mkdir()
    (folder / "mine" / "config.yaml").touch()
    (folder / JOB).write_text('{"flags": [], "asked": 0, "pid": null, "born": 0, "held": false}')
    names = ["base", "named", "mine", "mine/best", "mine/checkpoint-5", "mine/checkpoint-10"]
    assert list(gallery.models()) == names
    assert gallery.usual() == ["base", "mine"]
    assert all(model_name(path) == name for name, path in gallery.models().items())


def test_only_owners_draw_strengths_and_download_and_of_what_there_is(gallery):
    for login in ("bob", None):
        with pytest.raises(AccessError, match="owners"):
            gallery.draw_strengths(login, "named", "a star")
        with pytest.raises(AccessError, match="owners"):
            gallery.download(login, "named")
    for name in ("base", "../named", ""):
        with pytest.raises(AccessError):
            gallery.download("ada", name)
    with pytest.raises(AccessError, match="prompts"):
        gallery.draw_strengths("ada", "named", "\n".join(f"star {n}" for n in range(9)))
    with pytest.raises(ConfigError, match="prompt"):
        gallery.draw_strengths("ada", "named", " \n")


def test_a_download_is_a_zip_whose_lora_a_stock_pipeline_loads(gallery, base, tmp_path, monkeypatch):
    with forking(tmp_path / "forks.log") as forks:
        monkeypatch.setattr(download, "subprocess", Forks(forks))
        file = gallery.download("ada", "named")
    with zipfile.ZipFile(file) as archive:
        assert {"pytorch_lora_weights.safetensors", "README.md"} <= set(archive.namelist())
        assert any(name.endswith("_comfyui.safetensors") for name in archive.namelist())
        archive.extractall(tmp_path / "unzipped")
    pipe, before = stock(base), picture(stock(base))
    pipe.load_lora_weights(tmp_path / "unzipped")
    assert np.abs(picture(pipe) - before).max() > 0.01


def test_a_run_that_trained_everything_is_not_zipped(base, tmp_path):
    with pytest.raises(ConfigError, match="merged"):
        zipped(write_run(tmp_path / "full", base, train_method="full"))


def test_strengths_show_one_seed_at_every_weight_and_only_prompts_that_are_whole(tmp_path):
    with VoteStore(tmp_path / "strengths.db") as store:
        for shade, scale in enumerate(SCALES):
            for seed in (7, 8):
                store.add_pictures(
                    "a <star>", [encode_image(Image.new("L", (8, 8), 10 * shade + seed))], model=model_name("mine", scale), seeds=[seed]
                )
        store.add_pictures("a ring", [encode_image(Image.new("L", (8, 8)))], model="mine", seeds=[7])
        arena = Arena(store, Background(tmp_path / "log.txt"))
        drawn = strengths_of(arena, "mine")
        assert list(drawn) == ["a <star>"]
        assert [Image.open(file).getpixel((0, 0)) for file in drawn["a <star>"].values()] == [8, 18, 28, 38, 48, 58, 68]
        shown = strength_sheet(arena, "mine")
        assert (shown.count("<img"), "<star>" in shown) == (len(SCALES), False)


def test_names_and_prompts_are_no_html_and_commands_name_no_folder_in_full():
    image = Image.new("L", (8, 8))
    for shown in (flip(("<b>", image), ("<i>", image)), sheet(["<b>"], {"<i>": [image]})):
        assert "<b>" not in shown
        assert "<i>" not in shown
    assert (
        typed(["python", "-m", "diffalign.cli", "export", "--output_dir", "/a/secret/b/c d/e"])
        == "diffalign export --output_dir …/'b/c d/e'"
    )
