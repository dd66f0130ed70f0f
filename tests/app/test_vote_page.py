"""The vote page in a real browser: exactly the votes that were meant, whatever hands, browsers and servers do."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from tests.app.running import Server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown", "both_bad": "x", "skip": "s"}
PATIENCE = 60_000  # milliseconds after which something that never comes is a failure


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with VoteStore(folder / "votes.db") as store:
        for prompt in ("a star", "a moon", "<img src=x onerror=document.title='hacked'>"):
            store.add_pictures(prompt, [encode_image(Image.new("RGB", (16, 16), (n * 20, 80, 160))) for n in range(12)], model="tiny-sd")
    server = Server(folder)
    yield server
    server.kill()


class Voter:
    """Somebody at a page of their own browser, who remembers what they meant to vote."""

    def __init__(self, browser, server: Server, **screen) -> None:
        self.server, self.context = server, browser.new_context(**screen)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.open()
        self.meant: list[tuple[str, str]] = []

    def open(self):
        page = self.context.new_page()
        page.goto(self.server.address)
        return page

    def question(self, page=None) -> str:
        """Return the question on screen, once it takes an answer."""
        page = page or self.page
        page.wait_for_function(
            "() => { const { question, open } = document.querySelector('.vote')?.dataset ?? {}; return open && question === open }"
        )
        return page.get_attribute(".vote", "data-question")

    def means(self, answer: str) -> None:
        self.meant.append((self.question(), answer))

    def sent(self) -> None:
        """Wait until the server has everything."""
        self.page.wait_for_function("() => document.querySelector('.vote').dataset.unsent === '0'")

    def counted(self) -> list[tuple[str, str]]:
        """Return the votes that count of those whose questions were on this screen."""
        mine = {question for question, _ in self.meant}
        with VoteStore(self.server.folder / "votes.db", read_only=True) as store:
            (user,) = {store.question(name).user for name in mine}
            return [(vote.question, vote.answer) for vote in store.votes(user)]


def test_votes_by_keys_are_the_votes_that_were_meant(browser, server):
    voter = Voter(browser, server, viewport={"width": 1440, "height": 900})
    for answer in (*KEYS, *KEYS):
        voter.means(answer)
        voter.page.keyboard.press(KEYS[answer])
    voter.sent()
    assert voter.counted() == voter.meant
    assert "8 votes" in voter.page.inner_text(".vote .progress")  # skipping is none
    assert voter.page.title() != "hacked"


def test_a_held_key_or_a_double_click_is_one_vote(browser, server):
    voter = Voter(browser, server, viewport={"width": 1024, "height": 768})
    voter.means("left")
    for _ in range(5):
        voter.page.keyboard.down("ArrowLeft")  # of these, all but the first are repeats
    voter.page.keyboard.up("ArrowLeft")
    for _ in range(3):
        voter.means("right")
        voter.page.locator(".picture[data-answer=right]").dblclick()
    voter.question()
    voter.sent()
    assert voter.counted() == voter.meant


def test_votes_by_thumb_on_a_narrow_phone(browser, server):
    voter = Voter(browser, server, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for answer in ("left", "right", "tie", "both_bad", "skip"):
        voter.means(answer)
        where = ".picture" if answer in ("left", "right") else ".answers button"
        voter.page.locator(f"{where}[data-answer={answer}]").tap()
    voter.sent()
    assert voter.counted() == voter.meant
    assert voter.page.evaluate("document.documentElement.scrollWidth") <= 360
    tall = voter.page.locator(".answers button:visible").evaluate_all("buttons => buttons.map(button => button.offsetHeight)")
    assert min(tall) >= 44  # what a thumb hits


def test_two_tabs_reload_and_the_back_button_ask_the_same_and_count_once(browser, server):
    voter = Voter(browser, server)
    voter.means("left")
    other = voter.open()
    assert voter.question(other) == voter.question()
    voter.page.keyboard.press("ArrowLeft")
    voter.sent()
    other.keyboard.press("ArrowRight")  # late: the question has its answer
    other.wait_for_function("() => document.querySelector('.vote').dataset.unsent === '0'")
    voter.means("tie")
    voter.page.keyboard.press("ArrowDown")
    voter.sent()
    voter.page.reload()
    asked = voter.question()
    voter.page.goto("about:blank")
    voter.page.go_back()
    assert voter.question() == asked
    assert voter.counted() == voter.meant


def test_undo_takes_the_last_vote_back(browser, server):
    voter = Voter(browser, server)
    question = voter.question()
    voter.page.keyboard.press("ArrowLeft")
    voter.question()
    voter.page.keyboard.press("u")
    voter.page.wait_for_function("question => document.querySelector('.vote').dataset.question === question", arg=question)
    voter.means("right")
    voter.page.keyboard.press("ArrowRight")
    voter.sent()
    assert voter.counted() == voter.meant == [(question, "right")]


def test_keys_rest_while_one_types_and_space_shows_the_picture_full_size(browser, server):
    voter = Voter(browser, server)
    question = voter.question()
    voter.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<input id=somewhere>')")
    voter.page.focus("#somewhere")
    voter.page.keyboard.type("xsu")
    assert voter.page.get_attribute(".vote", "data-question") == question
    voter.page.evaluate("document.activeElement.blur()")
    voter.page.keyboard.press(" ")
    left = voter.page.get_attribute(".vote .full img", "src")
    voter.page.keyboard.press(" ")
    assert voter.page.get_attribute(".vote .full img", "src") != left
    voter.page.keyboard.press("Escape")
    assert voter.page.locator(".vote .full").is_hidden()


def test_votes_survive_a_server_that_is_killed_and_started_again(browser, server):
    voter = Voter(browser, server)
    for answer in ("left", "right"):
        voter.means(answer)
        voter.page.keyboard.press(KEYS[answer])
    voter.sent()
    voter.means("tie")
    server.kill()
    voter.page.keyboard.press("ArrowDown")
    voter.page.wait_for_selector(".vote .trouble:visible")
    voter.means("left")  # the next pair was on this side already
    voter.page.keyboard.press("ArrowLeft")
    voter.page.close()  # what was not sent yet is kept by the browser
    server.start()
    voter.page = voter.open()
    voter.question()
    voter.sent()
    assert voter.counted() == voter.meant
