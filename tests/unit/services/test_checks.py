import numpy as np
import pytest

from app.engine import ModelKey
from app.errors import InvalidInput
from app.services import Example, ImageInput, NewSession, ValuesInput
from app.services.checks import (
    check_addition,
    check_evaluation,
    check_growth,
    check_new,
    check_query,
)
from app.settings import Settings
from tests.fakes import FakeEngine, example, make_card, picture, values

CARD = FakeEngine().card(ModelKey("values", 1))
PICTURES = FakeEngine().card(ModelKey("omniglot", 1))
SUPPORT = [example("a", 0, 0, 0, 0), example("b", 1, 1, 1, 1)]


def issues_of(check, *arguments) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as caught:
        check(*arguments)
    return [(issue.pointer, issue.detail) for issue in caught.value.issues]


def new(**changes) -> NewSession:
    return NewSession(**{"support": SUPPORT, **changes})


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"support": []}, "/support", "needs at least 2 distinct labels, and has 0"),
        ({"support": SUPPORT[:1] * 3}, "/support", "needs at least 2 distinct labels, and has 1"),
        (
            {"support": [example(label, 0, 0, 0, 0) for label in "abcde"]},
            "/support",
            "makes 5 distinct labels of this session, at most 4 are allowed",
        ),
        (
            {"support": SUPPORT * 4},
            "/support",
            "makes 8 examples of this session, at most 6 are allowed",
        ),
        (
            {"support": [*SUPPORT, example("a", 1, 2, 3)]},
            "/support/2/input/values",
            "must be nested lists of shape [4]",
        ),
        (
            {"support": [*SUPPORT, Example(ImageInput(b""), "a")]},
            "/support/2/input/image",
            "the model takes no pictures but values of shape [4]",
        ),
        ({"query": []}, "/query", "must not be empty"),
        (
            {"query": [values(0, 0, 0, 0)] * 4},
            "/query",
            "has 4 items, at most 3 are allowed",
        ),
        (
            {"query": [values(0, 0, 0, 0), values(0, 0, float("nan"), 0)]},
            "/query/1/values",
            "must hold only finite numbers, at most 3.4e38 in magnitude",
        ),
        ({"steps": 5}, "/steps", "must be from 1 to 4"),
        ({"steps": 0}, "/steps", "must be from 1 to 4"),
        ({"ttl_seconds": 3601}, "/ttl_seconds", "must be from 1 to 3600"),
        ({"ttl_seconds": 0}, "/ttl_seconds", "must be from 1 to 3600"),
        (
            {"metadata": {"k": "é" * 29}},
            "/metadata",
            "has 66 bytes as JSON, at most 64 are allowed",
        ),
    ],
)
def test_a_new_session_that_breaks_one_rule_is_told_which(changes, pointer, detail, settings):
    assert issues_of(check_new, new(**changes), CARD, settings) == [(pointer, detail)]


def nested(depth: int) -> dict:
    metadata: dict = {}
    for _ in range(depth):
        metadata = {"": metadata}
    return metadata


@pytest.mark.parametrize(
    "metadata",
    [{"k": float("nan")}, {"k": [float("inf")]}, {"k": "\ud800"}, {"\udfff": 1}, nested(100_000)],
    ids=["NaN", "infinity", "half a character", "half a character in a key", "deep"],
)
def test_metadata_that_no_answer_could_hold_are_refused(metadata, settings):
    [(pointer, detail)] = issues_of(check_new, new(metadata=metadata), CARD, settings)
    assert (pointer, detail.split(":")[0]) == ("/metadata", "must be plain JSON")


def test_every_limit_may_be_reached(settings):
    draft = check_new(
        new(
            support=[example(label, 0, 0, 0, 0) for label in "abcdab"],
            query=[values(1, 2, 3, 4)] * 3,
            steps=4,
            ttl_seconds=3600,
            metadata={"k": "é" * 28},
        ),
        CARD,
        settings,
    )
    assert draft.support.floats().shape == (6, 4)
    assert draft.query.tolist() == [[1, 2, 3, 4]] * 3
    assert draft.steps == 4


def test_all_broken_rules_are_told_at_once(settings):
    broken = new(
        support=[*SUPPORT, example("c", 1), Example(ValuesInput("x"), "c")],
        query=[values(0), values(0, 0, 0, 0), values(1)],
        steps=99,
        ttl_seconds=99_999,
        metadata={"k": "x" * 99},
    )
    assert [pointer for pointer, _ in issues_of(check_new, broken, CARD, settings)] == [
        "/steps",
        "/ttl_seconds",
        "/metadata",
        "/support/2/input/values",
        "/support/3/input/values",
        "/query/0/values",
        "/query/2/values",
    ]


def test_at_most_twenty_broken_rules_are_told():
    broken = new(support=[example(str(i), 1) for i in range(30)], steps=1000)
    found = issues_of(check_new, broken, CARD, Settings())
    assert len(found) == 20
    assert found[0][0] == "/steps"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"GIF89a", "the picture is not a PNG, JPEG or WebP file"),
        (
            picture(np.zeros((101, 100), np.uint8)).data,
            "the picture has 100 x 101 pixels, at most 10000 in all are allowed; make it smaller",
        ),
        (
            picture(np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8)).data[:999],
            "the PNG file is broken or truncated",
        ),
    ],
    ids=["format", "size", "truncated"],
)
def test_a_picture_that_does_not_decode_is_told_where_and_why(data, detail, settings):
    good = Example(picture(np.zeros((28, 28), np.uint8)), "a")
    broken = new(support=[good, Example(ImageInput(data), "b")])
    assert issues_of(check_new, broken, PICTURES, settings) == [("/support/1/input/image", detail)]


def test_steps_default_to_the_models_within_the_limit(settings):
    assert check_new(new(), CARD, settings).steps == 3
    few = settings.model_copy(update={"max_steps": 2})
    assert check_new(new(), CARD, few).steps == 2


@pytest.mark.parametrize(
    ("support", "pointer", "detail"),
    [
        ([], "/support", "must not be empty"),
        (SUPPORT * 4, "/support", "has 8 items, at most 6 are allowed"),
        ([example("a", 1)], "/support/0/input/values", "must be nested lists of shape [4]"),
    ],
)
def test_examples_to_add_are_checked_on_their_own(support, pointer, detail, settings):
    assert issues_of(check_addition, support, CARD, settings) == [(pointer, detail)]


def test_one_example_of_one_label_may_be_added(settings):
    assert len(check_addition(SUPPORT[:1], CARD, settings)) == 1


def test_a_grown_support_set_is_checked_as_a_whole(settings):
    check_growth(4, 6, CARD, settings)
    assert issues_of(check_growth, 5, 7, CARD, settings) == [
        ("/support", "makes 7 examples of this session, at most 6 are allowed"),
        ("/support", "makes 5 distinct labels of this session, at most 4 are allowed"),
    ]


def test_a_head_of_fixed_width_takes_exactly_its_number_of_labels(settings):
    card = make_card("values", head="fixed-3")
    message = "makes {} distinct labels of this session, the head of this model takes exactly 3"
    assert issues_of(check_new, new(), card, settings) == [("/support", message.format(2))]
    check_new(new(support=[*SUPPORT, example("c", 2, 2, 2, 2)]), card, settings)
    check_growth(3, 6, card, settings)
    assert issues_of(check_growth, 4, 6, card, settings) == [("/support", message.format(4))]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [([], "/query"), ([values(0, 0, 0, 0)] * 4, "/query"), ([values(0)], "/query/0/values")],
)
def test_a_query_is_checked(query, pointer, settings):
    assert [found for found, _ in issues_of(check_query, query, CARD, settings)] == [pointer]


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([], [("/examples", "must not be empty")]),
        (SUPPORT * 2, [("/examples", "has 4 items, at most 3 are allowed")]),
        (
            [*SUPPORT, example("c", 0, 0, 0)],
            [
                ("/examples/2/label", "is not a label of this session"),
                ("/examples/2/input/values", "must be nested lists of shape [4]"),
            ],
        ),
    ],
)
def test_evaluation_examples_are_checked(examples, expected, settings):
    assert issues_of(check_evaluation, examples, ["a", "b"], CARD, settings) == expected


def test_evaluation_labels_are_numbered_as_the_sessions(settings):
    inputs, true = check_evaluation(SUPPORT, ["x", "b", "a"], CARD, settings)
    assert inputs.tolist() == [[0] * 4, [1] * 4]
    assert true.tolist() == [2, 1]
