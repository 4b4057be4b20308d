"""Bodies of tensors say the same as bodies of JSON, and are refused for the same reasons."""

import base64
import json
import math
from io import BytesIO

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from safetensors.torch import save as save_torch

from app.api.body import LARGE_BYTES
from app.api.oversized import MOST_ITEMS
from tests.unit.api.helpers import check_problem, pointers

TENSORS = {"Content-Type": "application/vnd.safetensors"}
SUPPORT = np.array([[0, 0, 0, 0], [3, 3, 3, 3]], np.float32)
QUERY = np.array([[0, 0, 0, 1], [3, 3, 2, 3], [9, 9, 9, 9]], np.float32)
SAID = {"model": "values", "labels": ["low", "high"]}


def file(said=None, **tensors) -> bytes:
    entries = {} if said is None else {"request": json.dumps(said)}
    return safetensors.numpy.save(tensors, entries)


def raw_file(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def post(client, url, raw, **headers):
    return client.post(url, content=raw, headers={**TENSORS, **headers})


def read(answer) -> tuple[dict, dict]:
    """What an answer says in JSON, and its tensors."""
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    size = int.from_bytes(answer.content[:8], "little")
    header = json.loads(answer.content[8 : 8 + size])
    said = json.loads(header["__metadata__"]["answer"])
    return said, safetensors.numpy.load(answer.content)


def as_json(rows) -> list[dict]:
    return [{"values": row.tolist()} for row in rows]


def check_same_predictions(labels, tensors, predictions):
    rows = [[prediction["probabilities"][label] for label in labels] for prediction in predictions]
    np.testing.assert_allclose(tensors["probabilities"], rows, rtol=1e-6)
    outliers = [prediction["outlier"] for prediction in predictions]
    np.testing.assert_allclose(tensors["outlier"], outliers, rtol=1e-6)
    assert tensors["probabilities"].dtype == tensors["outlier"].dtype == np.float32


def test_a_session_of_tensors_is_the_session_of_the_same_json(client, new_session):
    more = {"steps": 2, "ttl_seconds": 60, "metadata": {"ß": [1, {"a": None}]}}
    told = client.post("/v1/sessions", json={**new_session, **more, "query": as_json(QUERY)}).json()
    answer = post(client, "/v1/sessions", file({**SAID, **more}, support=SUPPORT, query=QUERY))
    assert answer.status_code == 201
    said, tensors = read(answer)
    assert answer.headers["location"] == f"/v1/sessions/{said['id']}"
    assert set(told) - set(said) == {"predictions"}
    fixed = {name: value for name, value in told.items() if name not in ("id", "predictions")}
    assert {name: said[name] for name in fixed} == fixed
    check_same_predictions(said["labels"], tensors, told["predictions"])
    assert client.get(answer.headers["location"]).json() == {**said, "predictions": None}


def test_predictions_of_tensors_are_those_of_the_same_json(client, session, session_url):
    told = client.post(f"{session_url}/predictions", json={"query": as_json(QUERY)}).json()
    for said in (None, {}):
        answer = post(client, f"{session_url}/predictions", file(said, query=QUERY))
        assert answer.status_code == 200
        said, tensors = read(answer)
        assert said == {
            "object": "list",
            "session": session["id"],
            "revision": 1,
            "labels": ["low", "high"],
        }
        check_same_predictions(said["labels"], tensors, told["data"])


def test_a_session_without_a_query_is_answered_without_tensors(client):
    _, tensors = read(post(client, "/v1/sessions", file(SAID, support=SUPPORT)))
    assert tensors == {}


def test_pixels_are_those_of_a_picture(client, engine):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), np.uint8)
    pictures = []
    for image in pixels:
        png = BytesIO()
        Image.fromarray(image[0]).save(png, "PNG")
        pictures.append({"image": base64.b64encode(png.getvalue()).decode()})
    labels = ["a", "b", "a"]
    support = [{"input": i, "label": n} for i, n in zip(pictures, labels, strict=True)]
    client.post("/v1/sessions", json={"support": support, "query": pictures})
    answer = post(client, "/v1/sessions", file({"labels": labels}, support=pixels, query=pixels))
    assert answer.status_code == 201, answer.text
    told, sent = engine.calls
    np.testing.assert_array_equal(sent.support.inputs, told.support.inputs)
    np.testing.assert_array_equal(sent.support.labels, told.support.labels)
    np.testing.assert_array_equal(sent.query, told.query)


def test_a_file_of_torch_is_read(client, session_url):
    raw = save_torch({"query": torch.from_numpy(QUERY)}, {"format": "pt"})
    assert post(client, f"{session_url}/predictions", raw).status_code == 200


def test_a_file_without_metadata_is_read(client, session_url):
    query = '"query": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]}'
    for metadata in ("", '"__metadata__": null, ', '"__metadata__": {}, '):
        raw = raw_file(f"{{{metadata}{query}}}".encode(), QUERY[0].tobytes())
        assert post(client, f"{session_url}/predictions", raw).status_code == 200


def test_a_large_body_is_read_as_a_small_one(client, session_url, settings):
    object.__setattr__(settings, "max_body_bytes", 10 * LARGE_BYTES)
    rows = LARGE_BYTES // SUPPORT[0].nbytes  # and the header
    many = np.zeros((rows, 4), np.float32)
    answer = post(client, f"{session_url}/predictions", file(query=many))
    assert pointers(answer) == ["/query"]  # read, and refused for the number of its rows
    assert f"has {rows} items, at most {settings.max_query}" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "ends before its header"),
        (b"{}", "ends before its header"),
        (b"\xff" * 8 + b"{}", "ends before its header"),
        (b"\xff" * 40, "ends before its header"),
        (raw_file(b""), "ends before its header"),
        (raw_file(b"{"), "no JSON"),
        (raw_file(b"[]"), "no safetensors"),
        (raw_file(b'{"query": 3}'), "no safetensors"),
        (raw_file(b'{"query": {"dtype": [], "shape": [1, 4], "data_offsets": [0, 16]}}'), "no saf"),
        (raw_file(b'{"__metadata__": {"request": 3}}'), "no safetensors"),
        (raw_file(b'{"__metadata__": {"request": " "}}'), "'request'"),
        (raw_file(b'{"__metadata__": {"request": "{"}}'), "'request'"),
        (raw_file(b'{"__metadata__": {"request": "\\ud800"}}'), "no safetensors"),
        (raw_file(b'{"query": {"dtype": "U8"}, "query": {"dtype": "U8"}}'), "stands twice"),
        (raw_file(b'{"query": {"dtype": "U8"}}'), "no safetensors"),
        (
            raw_file(
                b'{"query": {"dtype": "U8", "shape": [2, 4], "data_offsets": [0, 8]}}', b"123"
            ),
            "no safetensors",
        ),
        (
            raw_file(
                b'{"query": {"dtype": "U8", "shape": [1, 4], "data_offsets": [0, 9]}}', b"9" * 9
            ),
            "no safetensors",
        ),
        (file(query=QUERY)[:-1], "no safetensors"),
        (file(query=QUERY) + b"x", "no safetensors"),
    ],
)
def test_what_is_no_file_of_tensors_is_refused_with_400(client, session_url, raw, words):
    answer = post(client, f"{session_url}/predictions", raw)
    assert words in check_problem(answer, 400, "invalid_safetensors")["detail"]


@pytest.mark.parametrize(
    ("raw", "places"),
    [
        (file(SAID), ["/support"]),
        (file(SAID, support=SUPPORT, other=QUERY), ["/other"]),
        (file(SAID, support=SUPPORT.astype(np.float64)), ["/support"]),
        (file(SAID, support=SUPPORT.astype(np.int64), query=QUERY > 1), ["/query", "/support"]),
        (file(SAID, support=SUPPORT[:0]), ["/support"]),
        (file(SAID, support=np.array(3, np.float32)), ["/support"]),
        (file(SAID, support=SUPPORT, query=QUERY[:0]), ["/query"]),
        (file(SAID, support=SUPPORT[:1]), ["/labels"]),
        (file({"model": "values"}, support=SUPPORT), ["/labels"]),
        (file(support=SUPPORT), ["/labels"]),
        (file([], support=SUPPORT), [""]),
        (file({**SAID, "labels": ["", "b"]}, support=SUPPORT), ["/labels/0"]),
        (file({**SAID, "labels": ["a", 1]}, support=SUPPORT), ["/labels/1"]),
        (file({**SAID, "labels": ["a", "a"]}, support=SUPPORT), ["/support"]),
        (file({**SAID, "top": 1}, support=SUPPORT, query=QUERY), ["/top"]),
        (file({**SAID, "steps": "5"}, support=SUPPORT), ["/steps"]),
        (file({**SAID, "steps": 10**6}, support=SUPPORT), ["/steps"]),
        (file(SAID, support=SUPPORT[:, :3]), ["/support/0/input", "/support/1/input"]),
        (file(SAID, support=SUPPORT.astype(np.uint8)), ["/support/0/input", "/support/1/input"]),
        (file(SAID, support=SUPPORT, query=np.where(QUERY == 3, np.nan, QUERY)), ["/query/1"]),
        (file({"labels": ["a", "b"]}, support=SUPPORT), ["/support/0/input", "/support/1/input"]),
    ],
)
def test_tensors_that_break_a_rule_are_refused_where_they_do(client, engine, raw, places):
    assert sorted(pointers(post(client, "/v1/sessions", raw))) == places
    assert engine.calls == []
    assert client.get("/v1/sessions").json()["data"] == []


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([2**40, 0], f"at most {MOST_ITEMS} rows"),
        ([2**63, 0], f"at most {MOST_ITEMS} rows"),
        ([0, 2**62], "at least one row"),
        ([], "at least one row"),
        ([1, 0, 2**40, 2**40], "none of them empty"),
        ([1] * 65 + [4], "at most 16 dimensions"),
    ],
)
def test_shapes_that_no_array_has_are_refused(client, session_url, shape, words):
    size = 4 * math.prod(shape)
    query = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    raw = raw_file(json.dumps({"query": query}).encode(), b"\0" * size)
    answer = post(client, f"{session_url}/predictions", raw)
    assert pointers(answer) == ["/query"]
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({**SAID, "labels": [0] * (MOST_ITEMS + 1)}, "/labels"),
        ({**SAID, **{str(n): 0 for n in range(1000)}}, ""),
    ],
)
def test_what_is_far_beyond_the_schema_is_not_looked_at(client, settings, said, place):
    object.__setattr__(settings, "max_body_bytes", 10**6)
    answer = post(client, "/v1/sessions", file(said, support=SUPPORT))
    assert pointers(answer) == [place]


@pytest.mark.parametrize("path", ["examples", "evaluations"])
def test_other_routes_take_json_alone(client, session_url, path):
    answer = post(client, f"{session_url}/{path}", file(SAID, support=SUPPORT))
    detail = check_problem(answer, 415, "unsupported_media_type")["detail"]
    assert "application/json" in detail
    assert "safetensors" not in detail


def test_the_same_tensors_with_the_same_key_get_the_same_session(client):
    key = {"Idempotency-Key": "k"}
    raw = file(SAID, support=SUPPORT, query=QUERY)
    first = post(client, "/v1/sessions", raw, **key)
    said = json.dumps(dict(reversed(SAID.items())), indent=2)
    tensors = {"support": SUPPORT, "query": QUERY}
    for entries in ({"request": said}, {"request": said, "format": "np", "by": "me"}):
        again = post(client, "/v1/sessions", safetensors.numpy.save(tensors, entries), **key)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["location"] == first.headers["location"]
    other = post(client, "/v1/sessions", file(SAID, support=SUPPORT), **key)
    check_problem(other, 409, "idempotency_conflict")
    assert len(client.get("/v1/sessions").json()["data"]) == 1


def test_the_description_in_the_document_is_true(client):
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/sessions"]["post"]
    for place in (operation["requestBody"], operation["responses"]["201"]):
        assert set(place["content"]) == {"application/json", "application/vnd.safetensors"}
    form = document["components"]["schemas"]["TensorSession"]
    assert form["required"] == ["labels"]
    body = {"labels": ["a", "b"], "model": "values", "steps": 1, "ttl_seconds": 9, "metadata": {}}
    assert set(form["properties"]) == set(body)
    assert post(client, "/v1/sessions", file(body, support=SUPPORT)).status_code == 201
