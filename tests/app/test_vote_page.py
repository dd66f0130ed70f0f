"""The vote page in a real browser: exactly the votes that were meant, whatever hands, browsers and servers do."""

from __future__ import annotations

import json
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
    (folder / "options.json").write_text(json.dumps({"second_question": "Which is <b>sharper</b>?"}))
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def ranking(tmp_path_factory):
    """A server that asks to rank four pictures."""
    folder = tmp_path_factory.mktemp("ranking")
    with VoteStore(folder / "votes.db") as store:
        for prompt in ("a star", "a moon"):
            store.add_pictures(prompt, [encode_image(Image.new("RGB", (16, 16), (n * 20, 80, 160))) for n in range(12)], model="tiny-sd")
    (folder / "options.json").write_text(json.dumps({"mode": "ranking"}))
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
    for answer in [*KEYS] * 6:
        voter.means(answer)
        voter.page.keyboard.press(KEYS[answer])
    voter.sent()
    assert voter.counted() == voter.meant
    assert "24 votes" in voter.page.inner_text(".vote .progress")  # skipping is none
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


def test_votes_by_mouse_with_a_further_answer_are_the_votes_that_were_meant(browser, server):
    voter = Voter(browser, server, viewport={"width": 1024, "height": 768})
    voter.question()
    assert voter.page.inner_text(".vote .asked") == "Which is <b>sharper</b>?"
    for answer in KEYS:
        voter.means(answer)
        if answer == "tie":
            voter.page.click(".second [data-second=right]")
        where = ".picture" if answer in ("left", "right") else ".answers button"
        voter.page.click(f"{where}[data-answer={answer}]")
    voter.means("left")
    voter.page.keyboard.press("a")
    voter.page.keyboard.press("w")
    voter.page.keyboard.press("ArrowLeft")
    voter.sent()
    assert voter.counted() == voter.meant
    with VoteStore(server.folder / "votes.db", read_only=True) as store:
        mine = [vote for vote in store.votes() if vote.question in dict(voter.meant)]
    assert [vote.second_answer for vote in mine] == ["", "", "right", "", "", "tie"]


def rankings(voter) -> list[tuple[int, ...]]:
    """Return the ranks of a voter's votes; a skip has none."""
    with VoteStore(voter.server.folder / "votes.db", read_only=True) as store:
        return [vote.ranks for vote in store.votes() if vote.question in dict(voter.meant)]


def test_four_pictures_are_ranked_by_keys(browser, ranking):
    voter = Voter(browser, ranking, viewport={"width": 1440, "height": 900})
    voter.means("ranking")
    assert voter.page.locator(".vote .second").first.is_hidden()
    for key in ("3", "2", "2", "1", "u", "4", "4", "4", "1"):  # in, in, out, in, out, in, out, in, in
        voter.page.keyboard.press(key)
    voter.means("skip")
    voter.page.keyboard.press("1")
    voter.page.keyboard.press("s")
    undone = voter.question()
    for key in "123":
        voter.page.keyboard.press(key)
    voter.question()
    voter.page.keyboard.press("u")
    voter.page.wait_for_function("question => document.querySelector('.vote').dataset.question === question", arg=undone)
    voter.means("ranking")
    for key in "432":
        voter.page.keyboard.press(key)
    voter.sent()
    assert rankings(voter) == [(3, 4, 1, 2), (), (4, 3, 2, 1)]
    assert voter.counted() == voter.meant


def test_four_pictures_are_ranked_by_thumb_on_a_narrow_phone(browser, ranking):
    voter = Voter(browser, ranking, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for places in ((1, 0, 3), (0, 2, 1)):
        voter.means("ranking")
        for place in places:
            voter.page.locator(".picture").nth(place).tap()
    voter.sent()
    assert rankings(voter) == [(2, 1, 4, 3), (1, 3, 2, 4)]
    assert voter.page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = voter.page.locator(".picture").evaluate_all("all => all.map(one => one.getBoundingClientRect().bottom)")
    assert max(boxes) <= 740  # all four are seen at once
