"""HTML, scripts and templates in prompts, names of models, users and files, and answers of models: a browser shows them as text."""

from __future__ import annotations

import pytest
from PIL import Image

from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.store import VoteStore
from diffalign.data.table import write_table
from tests.app import test_vote_page as vote_page
from tests.app.running import Server

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = vote_page.pytestmark
browser = vote_page.browser  # the fixture
HOSTILE = (
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=2</script>",
    "${window.hacked=3}",
    "{{#if 1}}<b onmouseover=window.hacked=4>{{/if}}",
    "\"><svg onload=window.hacked=5> '",
    "[a](javascript:window.hacked=6) ![b](x)",
)
TABLE = "<img src=x onerror=hacked=7>"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("votes.db", "arena.db"):
        with VoteStore(folder / name) as store:
            for number, text in enumerate(HOSTILE):
                images = [encode_image(Image.new("L", (16, 16), shade + number)) for shade in (10, 100)]
                models = (text, f"other {text}") if name == "votes.db" else (HOSTILE[0], HOSTILE[2])  # which are rated
                for image, model in zip(images, models, strict=True):
                    store.add_pictures(text, [image], model=model, seeds=[number])
                for user in (text, "ada"):
                    (question,) = store.questions(user)
                    store.vote(question.id, user, "left", reasons=[text])
    texts = [Record(text, text, (Candidate(text=text, model=text), Candidate(text=text)), 1.0, user=text, source=text) for text in HOSTILE]
    write_table(folder / "data" / TABLE, texts)
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture
def page(browser, server):
    page = browser.new_context().new_page()
    page.set_default_timeout(vote_page.PATIENCE)
    page.goto(server.address)
    page.wait_for_function("() => document.querySelector('.vote')?.dataset.open")
    yield page
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x], svg[onload], b[onmouseover], a[href^=javascript]").count() == 0
    page.context.close()


def test_what_is_voted_on_is_text(page):
    for _ in HOSTILE:
        question = page.get_attribute(".vote", "data-question")
        assert page.locator(".vote .prompt").first.inner_text() in HOSTILE
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("before => document.querySelector('.vote').dataset.question !== before", arg=question)
        page.wait_for_function(
            "() => { const { question, open } = document.querySelector('.vote').dataset; return !question || open === question }"
        )


def test_what_is_looked_through_is_text(page):
    page.get_by_role("tab", name="Data", exact=True).click()
    for name in ("votes", "votes on Compare", TABLE):
        page.locator("#data-name input").fill(name)
        page.locator("#data-name input").press("Enter")
        page.click("#data-show")
        page.wait_for_function("text => document.querySelector('#data-shown .cards')?.innerText.includes(text)", arg=HOSTILE[-1])
        shown = page.locator("#data-shown").inner_text()
        assert all(text in shown for text in HOSTILE), name


def test_what_was_drawn_and_rated_is_text(page):
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=HOSTILE[0])
    page.wait_for_timeout(500)  # what is hostile would run by itself
