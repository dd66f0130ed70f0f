"""A user's pairs are read from whatever holds them; what is no pair, no image or no preference is named by its number or file."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.models.users.choices import Choice, contents, contradictions, read_choices

RED, BLUE, GREEN = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "green"))


def record(prob, first=RED, second=BLUE):
    return Record(
        "r", "a prompt", (Candidate(image=encode_image(first)), Candidate(image=encode_image(second))), prob, source="votes row 7"
    )


def test_pictures_bytes_and_files_become_the_same_choice(tmp_path):
    RED.save(tmp_path / "red.png")
    BLUE.save(tmp_path / "blue.png")
    drawn, encoded, named, spelled = read_choices(
        [
            ("a prompt", RED, BLUE),
            ["a prompt", encode_image(RED), encode_image(BLUE)],
            ("a prompt", tmp_path / "red.png", tmp_path / "blue.png"),
            ("a prompt", str(tmp_path / "red.png"), str(tmp_path / "blue.png")),
        ]
    )
    assert drawn == encoded == named == spelled == Choice("a prompt", RED, BLUE)


def test_choices_pass_as_they_are_and_keep_their_order():
    first, second = Choice("one", RED, BLUE), Choice("two", BLUE, GREEN)
    assert read_choices(iter([first, second])) == [first, second]
    assert read_choices([second, first]) == [second, first]


@pytest.mark.parametrize(("prob", "preferred"), [(1.0, RED), (0.6, RED), (0.4, BLUE), (0.0, BLUE)])
def test_a_record_is_read_as_its_label_says(prob, preferred):
    (choice,) = read_choices([record(prob)])
    assert choice == Choice("a prompt", preferred, BLUE if preferred is RED else RED)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "RGBA", "1", "F", "I;16"])
def test_a_picture_of_any_mode_becomes_rgb(mode):
    # an all-white picture is white in each of these; 16 bits a channel are brought down to 8, not clipped
    white = Image.new("I;16", (6, 4), 65535) if mode == "I;16" else Image.new("RGB", (6, 4), "white").convert("L").convert(mode)
    (choice,) = read_choices([("", white, RED)])
    assert choice.preferred == Image.new("RGB", (6, 4), "white")


def test_what_is_transparent_becomes_white():
    (choice,) = read_choices([("", Image.new("RGBA", (6, 4), (255, 0, 0, 0)), RED)])
    assert choice.preferred == Image.new("RGB", (6, 4), "white")


def test_an_opened_picture_is_turned_upright_as_its_file_would_be():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    RED.save(buffer, "PNG", exif=exif)
    (opened,) = read_choices([("", Image.open(io.BytesIO(buffer.getvalue())), BLUE)])
    (encoded,) = read_choices([("", buffer.getvalue(), BLUE)])
    assert opened == encoded
    assert opened.preferred.size == (4, 6)


def test_a_choice_does_not_change_with_the_picture_it_was_made_from():
    mine = RED.copy()
    (choice,) = read_choices([("", mine, BLUE)])
    mine.paste("green", (0, 0, 6, 4))
    assert choice.preferred == RED


def test_no_pairs_are_refused():
    with pytest.raises(ConfigError, match="no pairs"):
        read_choices([])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", RED, BLUE), ("b", RED)], "pair 1: found tuple of 2; expected"),
        ([(RED, BLUE, "a")], "pair 0: found tuple of 3; expected .prompt, preferred"),
        (("a", RED, BLUE), "pair 0: found str; expected"),
        ([{"prompt": "a"}], "pair 0: found dict; expected"),
        ([("a", RED, 3)], "pair 0, dispreferred: found int; expected an image"),
        ([("a", None, RED)], "pair 0, preferred: found NoneType; expected an image"),
    ],
)
def test_what_is_no_pair_is_named(pairs, message):
    with pytest.raises(ConfigError, match=message):
        read_choices(pairs)


def test_bytes_that_do_not_decode_are_named():
    with pytest.raises(RecordError, match="pair 1, dispreferred:"):
        read_choices([("a", RED, BLUE), ("b", RED, b"not an image")])


def test_a_file_that_does_not_decode_is_named(tmp_path):
    (tmp_path / "half.png").write_bytes(encode_image(RED)[:45])
    with pytest.raises(RecordError, match=r"pair 0, preferred: .*half\.png"):
        read_choices([("a", tmp_path / "half.png", BLUE)])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"pair 0, dispreferred: .*none\.png"):
        read_choices([("a", RED, tmp_path / "none.png")])


def test_an_opened_file_that_ends_too_soon_is_named():
    whole = io.BytesIO()
    Image.linear_gradient("L").save(whole, "PNG")
    with pytest.raises(RecordError, match="pair 0, preferred:"):
        read_choices([("a", Image.open(io.BytesIO(whole.getvalue()[:400])), BLUE)])


def test_an_image_of_a_record_that_does_not_decode_is_named_by_its_place_in_the_file():
    bad = Record("r", "", (Candidate(image=b"no"), Candidate(image=encode_image(RED))), 0.0, source="votes row 7")
    with pytest.raises(RecordError, match="votes row 7, candidate 0:"):
        read_choices([bad])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(0.5), "votes row 7: the label is a tie"),
        (record(None), "votes row 7: expected a labelled pair"),
        (Record("r", "", (Candidate(text="a"), Candidate(text="b")), 1.0, source="votes row 7"), "votes row 7: the candidates are texts"),
        (Record("r", "a prompt", (), source="prompts row 1"), "prompts row 1: expected a labelled pair"),
    ],
)
def test_a_record_without_a_preference_between_two_images_is_refused(bad, message):
    with pytest.raises(RecordError, match=message):
        read_choices([bad])


def test_the_same_pictures_preferred_both_ways_contradict():
    choices = [Choice("a", RED, BLUE), Choice("a", RED, GREEN), Choice("a", BLUE.copy(), RED.copy()), Choice("a", BLUE, RED)]
    assert contradictions(choices) == [(0, 2), (0, 3)]


@pytest.mark.parametrize(
    "choices",
    [
        [Choice("a", RED, BLUE), Choice("b", BLUE, RED)],  # of another prompt
        [Choice("a", RED, BLUE), Choice("a", RED, BLUE)],  # the same again
        [Choice("a", RED, BLUE), Choice("a", BLUE, GREEN), Choice("a", GREEN, RED)],  # a circle, of no two pictures both ways
        [Choice("a", RED, RED), Choice("a", RED, RED)],  # one picture
        [Choice("a", RED, BLUE), Choice("a", BLUE.resize((4, 6)), RED)],  # of another shape
    ],
)
def test_other_choices_do_not_contradict(choices):
    assert contradictions(choices) == []


def test_contents_tell_prompts_pixels_shapes_and_order_apart():
    base = [Choice("a", RED, BLUE), Choice("b", BLUE, GREEN)]
    others = [
        base[:1],
        base[::-1],
        [Choice("A", RED, BLUE), base[1]],
        [Choice("a", BLUE, RED), base[1]],
        [Choice("a", RED.resize((4, 6)), BLUE), base[1]],
        [],
    ]
    assert len({contents(choices) for choices in [base, *others]}) == 1 + len(others)
    assert contents(base) == contents([Choice(c.prompt, c.preferred.copy(), c.dispreferred.copy()) for c in base])
