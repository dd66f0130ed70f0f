"""A vision-language model as a judge: marks and verdicts, in words and by probabilities, and every kind of bad answer."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import re

import numpy as np
import pytest
import requests
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from diffalign.core.errors import ConfigError
from diffalign.core.trust import untrusted
from diffalign.data.pictures import encode_image
from diffalign.rewards.scorers.chat import LocalModel, Question
from diffalign.rewards.scorers.client import READINGS, RETRIES
from diffalign.rewards.scorers.wording import TEMPLATES, Reply, Wording, wording
from diffalign.rewards.shards import audit_of, audited
from diffalign.rewards.table import check_scorers, load_scorer
from tests.models.users.vlm_models import write_llava, write_qwen

REDS = (10, 120, 250)
IMAGES = [Image.new("RGB", (4, 3), (red, 0, 0)) for red in REDS]
PROMPTS = ["a red fox"] * 3
CHAT = "http://chat"


def reds(body):
    """Return the red of each picture of a question."""
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).getpixel((0, 0))[0] for url in urls]


def completion(text="", **choice):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text, **choice.pop("message", {})}, **choice}]}).encode(), 0


def probabilities(**chances):
    listed = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
    return completion("", logprobs={"content": [{"top_logprobs": listed}]})


def marks(_, body):
    return completion(f'The fox is red. ```json\n{{"alignment": {reds(body)[0] // 25}, "quality": 2}}\n```')


def redder(_, body):
    """Prefer the redder picture, of two that are alike the first."""
    first, second = reds(body)
    return completion(json.dumps({"better": "first" if first >= second - 5 else "second"}))


@pytest.fixture
def judge(server, tmp_path):
    """Return a way to load the scorer `vlm` with a server's answers, and the list of the server's requests."""

    def load(answer, /, **constants):
        url, sent = server(answer)
        return load_scorer({"vlm": {"url": f"{url}/v1", "model": "m", "cache": str(tmp_path / "judges.db"), **constants}}), sent

    return load


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_mark_is_the_mean_of_its_aspects_and_a_second_run_asks_nothing(judge, server, monkeypatch):
    bodies = []
    monkeypatch.setenv("DIFFALIGN_KEY_VLM", "sesame")
    scorer, sent = judge(lambda number, body: bodies.append(body) or marks(number, body), aspects=["alignment", "quality"])
    np.testing.assert_array_equal(scorer(IMAGES[1:], PROMPTS[1:]), [(4 + 2) / 2, (10 + 2) / 2])
    assert sent == [("/v1/chat/completions", "Bearer sesame")] * 2
    text = bodies[0]["messages"][0]["content"][-1]["text"]
    assert '"a red fox"' in text
    assert "- alignment:" in text
    assert '{"alignment": MARK, "quality": MARK}' in text
    assert (bodies[0]["model"], bodies[0]["temperature"]) == ("m", 0.0)
    np.testing.assert_array_equal(scorer(IMAGES[1:] * 2, PROMPTS[1:] * 2), [3.0, 6.0, 3.0, 6.0])
    assert len(sent) == 2
    assert audit_of(scorer) == {"answered": 2, "kept": 2}


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_win_fractions_are_means_of_verdicts_in_both_orders_written_out(judge):
    """Of reds 10, 120, 250: 120 and 250 beat 10, 250 beats 120, in both orders; 250 and 252 flip with the order, and are one half."""
    images = [*IMAGES, Image.new("RGB", (4, 3), (252, 0, 0))]
    scorer, sent = judge(redder, protocol="pairwise")
    expected = [(0 + 0 + 0) / 3, (1 + 0 + 0) / 3, (1 + 1 + 0.5) / 3, (1 + 1 + 0.5) / 3]
    np.testing.assert_allclose(scorer(images, ["a red fox"] * 4), expected, atol=1e-12)
    assert len(sent) == 2 * 6
    assert audit_of(scorer) == {"answered": 12, "pairs": 6, "flips": 1, "first_won": 7, "second_won": 5}
    assert "1 flips with the order; the first picture won 7 of 12 orders" in audited(audit_of(scorer))
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(scorer([images[i] for i in order], ["a red fox"] * 4), [expected[i] for i in order], atol=1e-12)
    assert len(sent) == 12
    one, other = scorer.compare(images[:2], images[1:3], PROMPTS[:2]), scorer.compare(images[1:3], images[:2], PROMPTS[:2])
    np.testing.assert_array_equal((one, other), ([0.0, 0.0], [1.0, 1.0]))
    np.testing.assert_array_equal(scorer([IMAGES[0]] * 2, ["x"] * 2), [0.5, 0.5])  # equal pictures tie without a question
    np.testing.assert_array_equal(scorer(IMAGES[:2], ["x", "y"]), [np.nan, np.nan])  # nothing of its prompt to compare it with
    assert len(sent) == 12


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2))
def test_a_verdict_by_probabilities_turns_round_with_the_pictures(chances):
    """Of first tokens A and B alone: chance(a, b) = (p + 1 - q) / 2, and so chance(b, a) = 1 - chance(a, b)."""
    words = wording(template="aspects", protocol="pairwise", answer="logprobs", aspects=None)
    p, q = (words.read(Reply("", tokens={" A": math.log(0.9 * chance), "B": math.log(0.9 * (1 - chance))})) for chance in chances)
    np.testing.assert_allclose((p, q), chances, atol=1e-9)
    assert (p + 1 - q) / 2 == pytest.approx(1 - (q + 1 - p) / 2)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_probabilities_give_an_expected_mark_and_a_graded_verdict(judge):
    scorer, _ = judge(lambda *_: probabilities(**{"4": 0.5, " 5": 0.25, "I": 0.2}), answer="logprobs")
    np.testing.assert_allclose(scorer(IMAGES[:1], PROMPTS[:1]), [(4 * 0.5 + 5 * 0.25) / 0.75])
    scorer, _ = judge(lambda _, body: probabilities(A=0.8 if reds(body)[0] > 100 else 0.4, B=0.1), answer="logprobs", protocol="pairwise")
    first, second = 0.8 / 0.9, 0.4 / 0.5  # of the redder, shown first; of the other, shown first
    np.testing.assert_allclose(scorer.compare(IMAGES[1:2], IMAGES[:1], PROMPTS[:1]), [(first + 1 - second) / 2])


BAD = {
    "an error of the server": (500, {}, b"SECRET", 0),
    "half a JSON": (200, {}, b'{"choices": [{"mess', 0),
    "cut off": (200, {}, b'{"choices": [{"mess', 9),
    "no completion": (200, {}, b'{"scores": [1, 2]}', 0),
    "half an answer": completion('{"alignment": 7, "qual'),
    "not a number": completion('{"alignment": NaN, "quality": 2}'),
    "infinite": completion('{"alignment": 1e999, "quality": 2}'),
    "no mark": completion('{"alignment": 11, "quality": 2}'),
    "cut off at max_tokens": completion("Score: 7", finish_reason="length"),
    "one aspect": completion('{"alignment": 3}'),
    "prose": completion("SECRET: what a lovely fox, I would give it full marks"),
}


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_answer_is_asked_for_again(judge, bad, caplog):
    scorer, sent = judge(lambda number, body: marks(number, body) if number == 3 else bad)
    np.testing.assert_array_equal(scorer(IMAGES[2:], PROMPTS[2:]), [6.0])
    assert len(sent) == 3
    assert audit_of(scorer) == {"answered": 1}
    assert "SECRET" not in caplog.text


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_picture_whose_answer_stays_unreadable_or_is_refused_has_no_score_and_is_counted(judge):
    def answer(_, body):
        if reds(body)[0] == 10:
            return completion("Fine.")
        return completion("I\u2019m sorry, I can\u2019t judge that.") if reds(body)[0] == 120 else marks(_, body)

    scorer, sent = judge(answer)
    np.testing.assert_array_equal(scorer(IMAGES, PROMPTS), [np.nan, np.nan, 6.0])
    assert audit_of(scorer) == {"unread": 1, "answered": 2, "refused": 1}
    assert len(sent) == READINGS + 2
    scorer(IMAGES, PROMPTS)  # the refusal is kept, and what could not be read is asked for again
    assert len(sent) == 2 * READINGS + 2
    for refusal in (completion(message={"refusal": "no"}), completion(finish_reason="content_filter"), (400, {}, b'"content_filter"', 0)):
        scorer, sent = judge(lambda *_, refusal=refusal: refusal, model="other")
        np.testing.assert_array_equal(scorer(IMAGES[:1], ["x"]), [np.nan])
        assert audit_of(scorer)["refused"] == 1


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_model_is_sent_its_own_names_and_no_temperature_where_it_takes_none(judge):
    bodies = []

    def answer(number, body):
        bodies.append(body)
        wrong = [name for name in ("max_tokens", "temperature") if name in body]
        words = {"max_tokens": b"use max_completion_tokens", "temperature": b"temperature is 1 and nothing else"}
        return (400, {}, words[wrong[0]], 0) if wrong else marks(number, body)

    scorer, _ = judge(answer)
    np.testing.assert_array_equal(scorer(IMAGES[2:], PROMPTS[2:]), [6.0])
    assert len(bodies) == 3
    assert bodies[-1]["max_completion_tokens"] == 512


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_verdict_that_lacks_an_order_is_open_and_other_pairs_count(judge):
    scorer, _ = judge(lambda number, body: completion("Hm.") if reds(body) == [10, 120] else redder(number, body), protocol="pairwise")
    np.testing.assert_array_equal(scorer(IMAGES, PROMPTS), [0.0, 0.0, 1.0])  # 10 and 120 are compared with 250 alone
    assert audit_of(scorer)["open"] == 1


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_server_that_stays_down_stops_with_what_is_done_kept_or_leaves_out(judge, monkeypatch):
    def answer(number, body):
        return (503, {}, b"", 0) if reds(body)[0] == 250 else marks(number, body)

    scorer, sent = judge(answer, concurrency=1)
    with pytest.raises(ConfigError, match=r"gives no answer \(status 503\), asked 6 times"):
        scorer(IMAGES[1:], PROMPTS[1:])
    assert len(sent) == 1 + RETRIES + 1
    np.testing.assert_array_equal(scorer(IMAGES[1:2], PROMPTS[1:2]), [3.0])  # without a further request
    assert len(sent) == 1 + RETRIES + 1
    scorer, _ = judge(answer, on_failure="leave_out", model="other")
    np.testing.assert_array_equal(scorer(IMAGES[1:], PROMPTS[1:]), [3.0, np.nan])
    assert audit_of(scorer) == {"answered": 1, "failed": 1}

    def late(*_, **__):
        raise requests.ReadTimeout("at http://127.0.0.1/?key=sesame")

    monkeypatch.setattr("requests.post", late)
    scorer, _ = judge(answer)
    with pytest.raises(ConfigError, match=r"gives no answer \(ReadTimeout\)") as caught:
        scorer(IMAGES[1:2], PROMPTS[1:2])
    assert "sesame" not in str(caught.value)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_the_pause_that_a_server_names_is_kept(judge, monkeypatch, caplog):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    waits = {1: "7", 2: "soon", 3: "99999", 4: "-3"}
    scorer, _ = judge(lambda number, body: (429, {"Retry-After": waits[number]}, b"", 0) if number in waits else marks(number, body))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(scorer(IMAGES[2:], PROMPTS[2:]), [6.0])
    assert [pause for pause in pauses if pause >= 1.0] == [7.0, 120.0]


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_key_is_nowhere_in_messages_logs_and_kept_answers(judge, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("DIFFALIGN_KEY_VLM", "sesame")
    scorer, _ = judge(lambda number, body: marks(number, body) if number == 2 else (500, {}, b"", 0))
    scorer(IMAGES[2:], PROMPTS[2:])
    scorer, sent = judge(lambda *_: (401, {}, b"sesame", 0), model="other")
    with pytest.raises(ConfigError, match="status 401; expected 200") as caught:
        scorer(IMAGES[:1], PROMPTS[:1])
    assert len(sent) == 1
    assert "sesame" not in f"{caught.value} {caplog.text} {scorer} {scorer.scale}"
    assert b"sesame" not in (tmp_path / "judges.db").read_bytes()


def test_templates_say_what_is_asked_and_answers_in_their_forms_are_read(tmp_path):
    def words(template, protocol="pointwise", **constants):
        return wording(**{"template": template, "protocol": protocol, "answer": "json", "aspects": None} | constants)

    four = words("visionprefer")
    assert re.findall(r"^- (\w+):", four.question("x"), re.MULTILINE) == ["prompt_following", "aesthetic", "fidelity", "harmlessness"]
    marked = json.dumps(dict.fromkeys(four.aspects, 4) | {"fidelity": 2})
    assert four.read(Reply(marked)) == (4 + 4 + 2 + 4) / 4
    unified = words("unified_reward")
    assert unified.question("{low} hats").endswith("Text Caption: [{low} hats]")
    answers = {
        "fox (animal): 1\nhat (object): 0\nFinal Score: 3.5": 3.5,
        "Final Score: 9": None,
        "**Final Score:** 2/5": 2.0,
        "4": 4.0,
        "fox: 1": None,
    }
    assert {text: unified.read(Reply(text)) for text in answers} == answers
    pair = words("unified_reward", "pairwise")
    verdicts = {
        "Image 1 is better. No: Image 2 is better.": 0.0,
        "Both images are equally good.": 0.5,
        "Neither.": None,
        '{"better": 1}': None,
    }
    assert {text: pair.read(Reply(text)) for text in verdicts} == verdicts
    file = tmp_path / "mine.txt"
    file.write_text("Does it show {prompt}? Say Score: 1 to 10")
    assert words(str(file)).question("a fox") == "Does it show a fox? Say Score: 1 to 10"
    file.write_text("How good?")
    for constants, message in (
        ({"template": str(file)}, r"has no \{prompt\}"),
        ({"template": "unified"}, "Did you mean `unified_reward`"),
        ({"template": "unified_reward", "aspects": ["quality"]}, "leave out `aspects`"),
        ({"template": "aspects", "aspects": ['a"b']}, "among `aspects`"),
        ({"template": "aspects", "aspects": []}, "`aspects` is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            words(**constants)
    assert set(TEMPLATES) == {"aspects", "visionprefer", "unified_reward"}


def test_settings_that_are_none_are_refused_before_anything_is_loaded(tmp_path):
    for constants, message in (
        ({"model": "m", "url": "ftp://host"}, "expected http:// or https://"),
        ({"model": "m", "url": "https://me:sesame@host/v1"}, "password or key"),
        ({"model": "m", "url": CHAT, "concurrency": 0}, "`concurrency` is 0"),
        ({"model": "m", "url": CHAT, "protocol": "pairs"}, "`protocol` is 'pairs'"),
        ({"model": f"{tmp_path}/none"}, "no such file or folder"),
        ({"url": CHAT}, "needs `model`"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            check_scorers([{"vlm": constants}])
        assert "sesame" not in str(caught.value)
    check_scorers([{"vlm": {"model": "accounts/some/models/x", "url": CHAT}}])


def test_a_file_may_name_a_model_here_and_no_server():
    """What a file names is used only where it reaches no server, at any depth."""
    server = untrusted({"vlm": {"model": "m", "url": "https://elsewhere/v1"}})
    for spec in (server, untrusted({"combined": {"scorers": ["adherence", {"vlm": {"model": "m", "url": "https://elsewhere/v1"}}]}})):
        with pytest.raises(ConfigError, match="sends prompts and pictures to 'https://elsewhere/v1'"):
            check_scorers([spec])
    check_scorers([untrusted({"vlm": {"model": "owner/model"}})])


@torch.no_grad()
def test_a_local_model_answers_by_the_probabilities_of_its_first_token_and_in_words(tmp_path):
    folder = write_qwen(tmp_path / "qwen")
    network, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    template = tmp_path / "short.txt"
    template.write_text("Prompt {prompt}")
    spec = {"model": str(folder), "template": str(template), "answer": "logprobs", "cache": str(tmp_path / "judges.db")}
    image, marks = IMAGES[1].resize((16, 16)), [processor.tokenizer.get_vocab()[str(mark)] for mark in range(1, 6)]
    ending = "Answer with one whole number from 1 to 5, the overall mark, and nothing else."
    seen = "<|vision_start|><|image_pad|><|vision_end|>"
    text = f"<|im_start|>user\n{seen}Prompt star\n{ending}<|im_end|>\n<|im_start|>assistant\n"
    state = network.model(**processor(text=[text], images=[[image]], return_tensors="pt")).last_hidden_state[0, -1]
    logits = torch.tensor([3.0, 2.0, 1.0, 2.0, 4.0])
    network.lm_head.weight.zero_()
    network.lm_head.weight[marks] = logits[:, None] * state / (state * state).sum()  # every other word has the logit 0
    network.save_pretrained(folder)
    chances = logits.double().exp().numpy()
    np.testing.assert_allclose(load_scorer({"vlm": spec})([image], ["star"]), [chances @ np.arange(1, 6) / chances.sum()], atol=1e-5)
    written = load_scorer({"vlm": spec | {"answer": "json", "max_tokens": 2}})
    np.testing.assert_array_equal(written([image], ["star"]), [np.nan])  # random words are no mark
    assert audit_of(written) == {"unread": 1}


class Lenient(Wording):
    """A wording that takes any answer."""

    def read(self, reply):
        return float(len(reply.text))


@pytest.mark.parametrize("write", [write_qwen, write_llava])
def test_a_local_model_answers_several_questions_at_once_as_one_by_one(tmp_path, monkeypatch, write):
    """Questions of several lengths about one picture or two, of several sizes, of which the shorter ones are padded."""
    local = LocalModel(model=str(write(tmp_path / "m")), revision=None, dtype="auto", max_tokens=3, batch=4, device="cpu")
    small, wide = (encode_image(Image.linear_gradient("L").convert("RGB").resize(size)) for size in ((16, 16), (32, 16)))
    questions = [Question("red star", (small,)), Question("red", (wide, small)), Question("star Prompt red red star", (small, wide))]
    for form in ("logprobs", "json"):
        words = Lenient(TEMPLATES["aspects"], "pairwise", form, ())
        together, single = local.answers(questions, words), [local.answers([question], words)[0] for question in questions]
        assert [reply.text for reply in together] == [reply.text for reply in single]
        for one, other in zip(together, single, strict=True):
            for token, value in (one.tokens or {}).items():
                assert other.tokens[token] == pytest.approx(value, abs=1e-3)
    assert len({reply.text for reply in single}) > 1  # what is asked matters
    sizes, ask = [], LocalModel.answers
    monkeypatch.setattr(LocalModel, "answers", lambda self, asked, words: sizes.append(len(asked)) or ask(self, asked, words))
    scorer = load_scorer({"vlm": {"model": local.model, "concurrency": 2, "max_tokens": 1, "cache": str(tmp_path / "judges.db")}})
    scorer([image.resize((16, 16)) for image in IMAGES], PROMPTS)
    assert sizes == [2, 1]
