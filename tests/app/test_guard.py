"""Who may do what, asked over HTTP as an attacker would: with forged cookies, as a voter, for files of the server."""

from __future__ import annotations

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from PIL import Image

from diffalign.app.jobs import Queue
from diffalign.app.limits import LARGEST_REQUEST
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.store import VoteStore
from tests.app.running import Server

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
# Events that voters may call, by what triggers them: these change nothing, and show what is for everybody.
VOTERS_MAY = (
    "timer tick",
    "page then",
    "visible",
    "focus",
    "train-which change",
    "train-method change",
    "run-which change",
    "look_again",
    "compare-prompt change",
    "strength change",
    "yours-",
    "html counted",
)
# Paths that lead to no data: the page that asks for the login among them.
OPEN = ("", "openapi.json", "docs", "redoc", "oauth2-redirect", "login", "login_check", "token", "logout")
OPEN += ("favicon.ico", "theme.css", "robots.txt", "manifest.json", "app_id", "startup-events", "heartbeat")
STATIC = ("assets", "static", "svelte")
PASSWORDS = {"ada": "correct horse", "bob": "battery staple"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    roles = {"ada": "owner", "bob": "voter"}
    (folder / "users.json").write_text(json.dumps({name: {"password": PASSWORDS[name], "role": role} for name, role in roles.items()}))
    with VoteStore(folder / "votes.db") as store:
        store.add_pictures("a star", [encode_image(Image.new("L", (8, 8), shade)) for shade in range(0, 250, 25)], model="tiny-sd")
    server = Server(folder)
    yield server
    server.kill()


def login(server: Server, name: str) -> requests.Session:
    session = requests.Session()
    answer = session.post(f"{server.address}login", data={"username": name, "password": PASSWORDS[name]}, timeout=30)
    assert answer.ok, answer.text
    return session


def call(server: Server, session: requests.Session, function: str, **data) -> requests.Response:
    """Call a function of the vote page, as its script does."""
    page = session.get(f"{server.address}config", timeout=30).json()
    widget = next(part["id"] for part in page["components"] if part["props"].get("props", {}).get("ballot") == "votes")
    body = {"component_id": widget, "fn_name": function, "data": data, "session_hash": "x"}
    return session.post(f"{server.address}gradio_api/component_server", json=body, timeout=30)


def event(server: Server, session: requests.Session, number: int, values: list, tab: str | None = None) -> str:
    """Call an event of the page by its number, as a new tab or one that was there; return all that was answered."""
    name = tab or uuid.uuid4().hex
    body = {"fn_index": number, "data": values, "session_hash": name}
    joined = session.post(f"{server.address}gradio_api/queue/join", json=body, timeout=30)
    if not joined.ok:
        return f"refused: {joined.status_code}"
    text = ""
    with session.get(f"{server.address}gradio_api/queue/data", params={"session_hash": name}, stream=True, timeout=60) as lines:
        for line in lines.iter_lines():
            text += line.decode()
            if b"process_completed" in line or b"close_stream" in line:
                break
    return text


def events(server: Server, session: requests.Session) -> dict[str, tuple[int, list]]:
    """Return every event of the page, by what triggers it: its number, and values that an attacker would send."""
    config = session.get(f"{server.address}config", timeout=30).json()
    parts = {part["id"]: part for part in config["components"]}
    wanted = {"data-name": "votes", "train-name": "stolen", "train-sure": "mine"}
    found = {}
    for one in config["dependencies"]:
        at, on = one["targets"][0]
        trigger = parts[at]["props"].get("elem_id") or parts[at]["type"] if at in parts else "page"
        values = [wanted.get(parts[at]["props"].get("elem_id"), parts[at]["props"].get("value")) for at in one["inputs"]]
        found[f"{one['api_name']}: {trigger} {on}"] = (one["id"], values)
    return found


def test_nobody_gets_in_without_a_login_or_with_a_forged_cookie(server):
    stranger, forger = requests.Session(), requests.Session()
    bob = login(server, "bob")
    for name in bob.cookies.get_dict():
        forger.cookies.set(name, "A" * len(bob.cookies[name]))
    for session in (stranger, forger):
        for path in ("config", "gradio_api/info", "gradio_api/file=votes.db"):
            assert session.get(f"{server.address}{path}", timeout=30).status_code in (401, 403, 404)
        body = {"component_id": 1, "fn_name": "vote", "data": {}, "session_hash": "x"}
        assert session.post(f"{server.address}gradio_api/component_server", json=body, timeout=30).status_code == 401
    wrong = requests.post(f"{server.address}login", data={"username": "ada", "password": "battery staple"}, timeout=30)
    assert wrong.status_code == 400


def test_a_voter_votes_under_the_login_and_for_nobody_else(server):
    ada, bob = login(server, "ada"), login(server, "bob")
    asked = call(server, ada, "state", secret="f" * 32).json()["questions"][0]["id"]
    answer = call(server, bob, "vote", question=asked, secret="f" * 32, answer="left", reasons=[]).json()
    assert "error" in answer
    assert str(server.folder) not in json.dumps(answer)
    for odd in ({"question": ["a"]}, {"question": "x" * 10_000}, {"question": asked, "answer": "left", "reasons": ["<script>"]}):
        assert "error" in call(server, ada, "vote", **{"answer": "left", "reasons": [], **odd}).json()
    with VoteStore(server.folder / "votes.db", read_only=True) as store:
        assert store.question(asked).user == "ada"
        assert store.votes() == []


def test_every_function_of_the_page_but_these_refuses_voters_and_tells_them_nothing(server):
    bob = login(server, "bob")
    queue = Queue(server.folder / "trainings")
    image = Candidate(image=encode_image(Image.new("L", (8, 8))))
    queue.add("mine", [Record("0", "a prompt of ada alone", (image, image), 1.0, user="ada")], ["--max_train_steps", "10"])
    queue.stop("mine")
    before = sorted(str(path) for path in (server.folder / "trainings").rglob("*"))
    listed = events(server, bob)
    assert len(listed) > 20
    for name, (number, values) in listed.items():
        answer = event(server, bob, number, values)
        allowed = any(word in name for word in VOTERS_MAY)
        assert allowed or "only owners" in answer, f"{name}: {answer[:500]}"
        assert not any(secret in answer for secret in ('"ada"', '"mine"', "of ada alone", str(server.folder))), f"{name}: {answer[:500]}"
    assert sorted(str(path) for path in (server.folder / "trainings").rglob("*")) == before
    assert queue.job("mine").state == "stopped"
    queue.delete("mine")


def test_no_event_and_no_route_answers_without_a_login(server):
    stranger = requests.Session()
    for name, (number, values) in events(server, login(server, "ada")).items():
        assert event(server, stranger, number, values) == "refused: 401", name
    routes = requests.get(f"{server.address}test-routes", timeout=30).json()
    assert len(routes) > 20
    for method, route in routes:
        path = re.sub(r"{[^}]*}", "x", route).lstrip("/")
        if path.split("/")[-1] not in OPEN and not path.startswith(STATIC):
            answer = stranger.request(method, f"{server.address}{path}", timeout=30, allow_redirects=False)
            assert answer.status_code not in (200, 500), f"{method} {path}: {answer.status_code}"


def test_two_owners_who_delete_a_training_at_once_delete_it_once(server):
    queue, owners = Queue(server.folder / "trainings"), [login(server, "ada") for _ in range(4)]
    image = Candidate(image=encode_image(Image.new("L", (8, 8))))
    number, _ = next(call for name, call in events(server, owners[0]).items() if "train-delete" in name)
    refresh = next(call for name, call in events(server, owners[0]).items() if "timer" in name)
    queue.add("theirs", [Record("0", "a star", (image, image), 1.0)], ["--max_train_steps", "10"])
    queue.stop("theirs")
    for tab, owner in enumerate(owners):
        assert "theirs" in event(server, owner, *refresh, tab=f"tab{tab}")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda tab: event(server, owners[tab], number, ["theirs", "theirs"], tab=f"tab{tab}"), range(4)))
    assert sum("Deleted." in answer for answer in answers) == 1, answers
    assert not any('"success":false' in answer.replace(" ", "") for answer in answers), answers
    assert "theirs" not in [job.name for job in queue.jobs()]


def test_files_of_the_server_are_given_to_nobody(server):
    ada = login(server, "ada")
    for path in ("/etc/passwd", f"{server.folder}/users.json", f"{server.folder}/votes.db", "../../etc/passwd", "users.json"):
        answer = ada.get(f"{server.address}gradio_api/file={path}", timeout=30)
        assert answer.status_code in (403, 404), path
        assert "correct horse" not in answer.text


def test_pictures_are_given_by_their_content_to_those_who_are_logged_in_and_no_other_file_is(server):
    ada, address = login(server, "ada"), f"{server.address}vote-pictures/votes/"
    name = call(server, ada, "state", secret="f" * 32).json()["questions"][0]["pictures"][0]
    answer = ada.get(address + name, timeout=30)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == (server.folder / "votes.db.pictures" / name[:2] / name).read_bytes()
    assert requests.get(address + name, timeout=30).status_code == 404
    outside = server.folder / ("0" * 64 + ".png")
    outside.write_bytes(b"a file beside the store")
    (server.folder / "votes.db.pictures" / "00").mkdir(exist_ok=True)
    for path in (
        outside.name,
        "..%2f..%2f" + outside.name,
        f"00%2f{outside.name}",
        "..%2f..%2fusers.json",
        "%2fetc%2fpasswd",
        name[:-4],
        name[:2],
    ):
        assert ada.get(address + path, timeout=30).status_code == 404, path


def test_requests_that_are_too_large_or_of_no_length_are_refused_before_they_are_read(server):
    ada = login(server, "ada")
    for path in ("upload", "queue/join", "component_server", "run/predict"):
        answer = ada.post(f"{server.address}gradio_api/{path}", data=b" " * (LARGEST_REQUEST + 1), timeout=60)
        assert answer.status_code == 413, path
        answer = ada.post(f"{server.address}gradio_api/{path}", data=(b" " for _ in range(2)), timeout=60)  # in chunks
        assert answer.status_code == 411, path
    one = {"files": ("a.png", b"\0" * (LARGEST_REQUEST // 2 + 1))}
    assert ada.post(f"{server.address}gradio_api/upload", files=one, timeout=60).status_code == 413
