"""The page Yours in a real browser: four choices to another picture, kept over a reload, saved and loaded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffalign.app.studio import EACH, PROMPTS
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from tests.app.running import Server
from tests.app.test_vote_page import PATIENCE, browser, pytestmark  # noqa: F401  # the fixture of all pages in a browser
from tests.infer.user_runs import write_user_run
from tests.micro_models import write_micro

YOU, NOBODY = (f"#yours-looks .two div:nth-child({place}) img" for place in (1, 2))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("app"), np.random.default_rng(0)
    write_user_run(folder / "personal", write_micro("sd", folder / "micro-sd"))
    with VoteStore(folder / "choices.db") as store:
        for prompt in PROMPTS:
            noise = rng.integers(0, 255, (EACH, 32, 32, 3), np.uint8)
            store.add_pictures(prompt, [encode_image(Image.fromarray(one)) for one in noise], seeds=range(EACH))
    server = Server(folder)
    yield server
    server.kill()


class Visitor:
    """Somebody at the page."""

    def __init__(self, browser, server: Server) -> None:  # noqa: F811  # pytest's own way to name a fixture
        self.page = browser.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(server.address)
        self.open()

    def open(self) -> None:
        self.page.get_by_role("tab", name="Yours").first.click()
        self.page.wait_for_selector(YOU)

    def sources(self, which: str) -> list[str]:
        return self.page.locator(which).evaluate_all("images => images.map(image => image.src)")

    def status(self, text: str) -> None:
        self.page.wait_for_function("text => document.querySelector('#yours-status').innerText.includes(text)", arg=text)

    def choose(self, key: str, count: int) -> None:
        self.page.wait_for_function(
            "() => { const { question, open } = document.querySelector('#yours-choices .vote').dataset; return open && question === open }"
        )
        self.page.keyboard.press(key)
        self.status(f"{count} choice")

    def load(self, button: str, file) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.locator(button).click()
        chooser.value.set_files(file)


def test_four_choices_change_the_pictures_and_are_kept_saved_and_loaded(browser, server, tmp_path):  # noqa: F811  # a fixture of another file
    visitor = Visitor(browser, server)
    nobodys = visitor.sources(NOBODY)
    assert visitor.sources(YOU) == nobodys
    seen = [nobodys]
    for count, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowLeft"), start=1):
        visitor.choose(key, count)
        assert visitor.sources(YOU) not in seen
        assert visitor.sources(NOBODY) == nobodys
        seen.append(visitor.sources(YOU))
    with visitor.page.expect_download() as download:
        visitor.page.locator("#yours-save").click()
    file = tmp_path / "ada.safetensors"
    download.value.save_as(file)
    assert 0 < file.stat().st_size < 5_000

    visitor.page.reload()
    visitor.open()
    visitor.status("4 choices")
    assert visitor.sources(YOU) == seen[-1]

    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no tensors")
    visitor.load("#yours-load", wrong)
    visitor.status("wrong.safetensors")
    visitor.page.locator("#yours-afresh").click()
    visitor.status("nobody's pictures")
    assert visitor.sources(YOU) == nobodys
    visitor.load("#yours-load", file)
    visitor.status("your file")
    assert visitor.sources(YOU) == seen[-1]
