"""Who may do what, asked over HTTP as an attacker would: with forged cookies, as a voter, for files of the server."""

from __future__ import annotations

import json

import pytest
import requests
from PIL import Image

from diffalign.app.build import BYTES
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from tests.app.running import Server

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
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


def event(server: Server, session: requests.Session, target: str, values: list) -> str:
    """Call the event that a component of the page triggers, whatever the page would show of it; return all that was answered."""
    page = requests.Session() if not session.cookies else session
    config = page.get(f"{server.address}config", timeout=30).json()
    number = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == target)
    function = next(one["id"] for one in config["dependencies"] if [number, "click"] in [list(pair) for pair in one["targets"]])
    body = {"fn_index": function, "data": values, "session_hash": "x"}
    joined = session.post(f"{server.address}gradio_api/queue/join", json=body, timeout=30)
    if not joined.ok:
        return f"refused: {joined.status_code}"
    lines = session.get(f"{server.address}gradio_api/queue/data", params={"session_hash": "x"}, stream=True, timeout=60).iter_lines()
    text = ""
    for line in lines:
        text += line.decode()
        if b"process_completed" in line or b"close_stream" in line:
            break
    return text


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


def test_a_voter_who_calls_what_only_owners_may_do_is_refused(server):
    bob = login(server, "bob")
    assert "owners" in event(server, bob, "train-start", ["everyone", "stolen", "mapo", 3, 10])
    assert "owners" in event(server, bob, "train-delete", [None, "mine"])
    assert "owners" in event(server, bob, "data-show", [1, "votes", "all", "all", "", "", "", None, None])
    assert "owners" in event(server, bob, "compare-draw", [["tiny-sd"], "a star", 4])
    assert not (server.folder / "trainings" / "stolen").exists()


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


def test_an_upload_that_is_too_large_is_refused_and_leaves_nothing(server):
    ada = login(server, "ada")
    assert BYTES == "8mb"
    answer = ada.post(f"{server.address}gradio_api/upload", files={"files": ("a.png", b"\\0" * (9 << 20))}, timeout=60)
    assert answer.status_code == 413
