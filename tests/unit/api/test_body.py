import gzip
import json

import pytest

from app.api.body import LARGE_BYTES
from app.api.strict_json import parse_json
from tests.unit.api.helpers import check_problem, pointers

JSON = {"Content-Type": "application/json"}


def send(client, raw: bytes, **headers):
    return client.post("/v1/sessions", content=raw, headers={**JSON, **headers})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b" \r\n\t ", "empty"),
        (b"{", "line 1, column 2"),
        (b'{"support": [],}', "no JSON"),
        (b"{} {}", "Extra data"),
        (b"{'support': []}", "no JSON"),
        (b'{"a": "\t"}', "control character"),
        (b'{"a": 01}', "no JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": [Infinity]}', "Infinity is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": "\xff"}', "no UTF-8: see byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "no UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "no UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "no JSON"),
        (b'{"support": 1, "support": 2}', '"support" stands twice'),
        (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', '"b" stands twice'),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_with_400(client, raw, words):
    assert words in check_problem(send(client, raw), 400, "invalid_json")["detail"]


@pytest.mark.parametrize("raw", [b"[]", b"null", b"3", b'"text"', b"true"])
def test_json_that_is_no_object_breaks_the_schema(client, raw):
    answer = send(client, raw)
    assert pointers(answer) == [""]
    assert "must be an object" in answer.json()["detail"]


def test_numbers_too_large_for_a_float_are_read_as_infinite():
    huge = "9" * 5000
    assert parse_json(f"[1e400, -{huge}, {huge}, 7]".encode()) == [
        float("inf"),
        float("-inf"),
        float("inf"),
        7,
    ]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 400, "-" + "9" * 5000])
def test_numbers_too_large_for_a_float_are_refused_where_they_stand(client, new_session, number):
    text = json.dumps(new_session).replace("[3, 3, 3, 3]", f"[3, 3, {number}, 3]")
    answer = send(client, text.encode())
    assert pointers(answer) == ["/support/1/input/values/2"]


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON;charset=UTF-8"])
def test_json_is_taken_with_any_parameters(client, new_session, media_type):
    answer = send(client, json.dumps(new_session).encode(), **{"Content-Type": media_type})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json, text/plain",
        "json",
        "application/problem+json",
        "multipart/form-data; boundary=x",
        "application/jsonp",
    ],
)
def test_another_media_type_is_refused(client, new_session, media_type):
    answer = send(client, json.dumps(new_session).encode(), **{"Content-Type": media_type})
    check_problem(answer, 415, "unsupported_media_type")


def test_a_body_without_a_media_type_is_refused(client, new_session):
    answer = client.post("/v1/sessions", content=json.dumps(new_session).encode())
    assert "content-type" not in answer.request.headers
    check_problem(answer, 415, "unsupported_media_type")


def test_no_body_at_all_is_no_json(client):
    check_problem(client.post("/v1/sessions"), 400, "invalid_json")


def test_a_compressed_body_is_refused_and_the_way_out_named(client, new_session):
    raw = gzip.compress(json.dumps(new_session).encode())
    answer = send(client, raw, **{"Content-Encoding": "gzip"})
    check_problem(answer, 415, "unsupported_media_type")
    assert answer.headers["accept-encoding"] == "identity"


def padded(body: dict, size: int) -> bytes:
    """The body as JSON, made `size` bytes long by white space."""
    raw = json.dumps(body).encode()
    return raw + b" " * (size - len(raw))


def chunked(raw: bytes):
    for start in range(0, len(raw), 10_000):
        yield raw[start : start + 10_000]


@pytest.mark.parametrize("framed", [bytes, chunked])
def test_a_body_of_the_largest_size_is_taken_and_a_larger_one_refused(
    client, new_session, settings, framed
):
    limit = settings.max_body_bytes
    assert send(client, framed(padded(new_session, limit))).status_code == 201
    answer = send(client, framed(padded(new_session, limit + 1)))
    assert str(limit) in check_problem(answer, 413, "content_too_large")["detail"]


def test_a_body_said_to_be_too_large_is_refused_before_it_is_read(client, settings):
    unread = iter([])  # asking it for a chunk would end the body
    answer = send(client, unread, **{"Content-Length": str(settings.max_body_bytes + 1)})
    check_problem(answer, 413, "content_too_large")


@pytest.fixture
def large_limit(settings):
    object.__setattr__(settings, "max_body_bytes", 10 * LARGE_BYTES)


def test_a_large_body_is_checked_like_a_small_one(large_limit, client, new_session):
    assert send(client, padded(new_session, 2 * LARGE_BYTES)).status_code == 201
    check_problem(send(client, padded([], 2 * LARGE_BYTES)[:-1] + b"]"), 400, "invalid_json")
    assert pointers(send(client, padded({}, 2 * LARGE_BYTES))) == ["/support"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"support": [1] * 16_385}, "/support"),
        ({f"name {n}": 1 for n in range(33)}, ""),
        ({"support": [{f"name {n}": 1 for n in range(33)}]}, "/support/0"),
        ({"support": [{"input": {f"{n}": 1 for n in range(33)}}]}, "/support/0/input"),
    ],
)
def test_what_is_far_beyond_the_schema_is_refused_in_one_issue(client, body, pointer):
    assert pointers(send(client, json.dumps(body).encode())) == [pointer]
