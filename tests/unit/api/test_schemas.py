import json

import pytest

from tests.unit.api.helpers import check_problem, picture, pointers

GOOD = {"input": {"values": [1, 2, 3, 4]}, "label": "a"}


def example(**changes) -> dict:
    return {**GOOD, **changes}


def put(body: dict, path: tuple, value: object) -> dict:
    """A copy of the body with another value at a path; the last step may be new."""
    copy = json.loads(json.dumps(body))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "pointer", "words"),
    [
        (("unknown",), 1, "/unknown", "not a known field"),
        (("a/b~c",), 1, "/a~1b~0c", "not a known field"),
        (("support",), None, "/support", "must be a list"),
        (("support",), [], "/support", "at least 1"),
        (("support",), {"0": GOOD}, "/support", "must be a list"),
        (("support", 1), "a", "/support/1", "must be an object"),
        (("support", 1), {}, "/support/1/input", "is required"),
        (("support", 1), {"input": GOOD["input"]}, "/support/1/label", "is required"),
        (("support", 1, "weight"), 1, "/support/1/weight", "not a known field"),
        (("support", 1, "target"), [1], "/support/1/target", "not a known field"),
        (("support", 1, "label"), "", "/support/1/label", "at least 1 character"),
        (("support", 1, "label"), "x" * 201, "/support/1/label", "at most 200 characters"),
        (("support", 1, "label"), 7, "/support/1/label", "must be a string"),
        (("support", 1, "label"), None, "/support/1/label", "must be a string"),
        (("support", 1, "label"), ["a"], "/support/1/label", "must be a string"),
        (("support", 1, "label"), "\ud800", "/support/1/label", "lone surrogates"),
        (("support", 1, "label"), "a\udc00b", "/support/1/label", "lone surrogates"),
        (("support", 1, "input"), "x", "/support/1/input", "either `image` or `values`"),
        (("support", 1, "input"), None, "/support/1/input", "either `image` or `values`"),
        (("support", 1, "input"), {}, "/support/1/input", "either `image` or `values`"),
        (("support", 1, "input"), {"text": "x"}, "/support/1/input", "either `image` or `values`"),
        (
            ("support", 1, "input"),
            {"image": picture(0), "values": [1]},
            "/support/1/input",
            "either `image` or `values`",
        ),
        (("support", 1, "input", "<values>"), 1, "/support/1/input/<values>", "not a known field"),
        (("support", 1, "<values>"), 1, "/support/1/<values>", "not a known field"),
        (("support", 1, "input", "values"), None, "/support/1/input/values", "must be a list"),
        (("support", 1, "input", "values"), 3, "/support/1/input/values", "must be a list"),
        (("support", 1, "input", "values", 2), "3", "/support/1/input/values/2", "a number"),
        (("support", 1, "input", "values", 2), True, "/support/1/input/values/2", "a number"),
        (("support", 1, "input", "values", 2), None, "/support/1/input/values/2", "a number"),
        (
            ("support", 1, "input", "values", 2),
            [1, [2, "3"]],
            "/support/1/input/values/2/1/1",
            "a number",
        ),
        (("query",), [], "/query", "at least 1"),
        (("query",), {}, "/query", "must be a list"),
        (("query",), [GOOD], "/query/0", "either `image` or `values`"),
        (("query",), [{"values": [1], "label": "a"}], "/query/0/label", "not a known field"),
        (("query",), [{"values": {}}], "/query/0/values", "must be a list"),
        (("model",), 1, "/model", "must be a string"),
        (("model",), "", "/model", "at least 1"),
        (("model",), "x" * 64, "/model", "at most 63"),
        (("steps",), 0, "/steps", "at least 1"),
        (("steps",), "5", "/steps", "must be an integer"),
        (("steps",), 5.0, "/steps", "must be an integer"),
        (("steps",), True, "/steps", "must be an integer"),
        (("steps",), 1e400, "/steps", "must be an integer"),
        (("steps",), 10**30, "/steps", "from 1 to"),
        (("ttl_seconds",), -1, "/ttl_seconds", "at least 1"),
        (("ttl_seconds",), 1.5, "/ttl_seconds", "must be an integer"),
        (("ttl_seconds",), 10**30, "/ttl_seconds", "from 1 to"),
        (("top",), 0, "/top", "at least 1"),
        (("top",), "1", "/top", "must be an integer"),
        (("top",), 1, "/top", "beside `query`"),
        (("metadata",), [], "/metadata", "must be an object"),
        (("metadata",), "x", "/metadata", "must be an object"),
        (("metadata",), {"a": {"b/": [0, "\ud800"]}}, "/metadata/a/b~1/1", "lone surrogates"),
        (("metadata",), {"a": [{"\ud800": 1}]}, "/metadata/a/0", "lone surrogates"),
        (("metadata",), {"a": 1e400}, "/metadata/a", "finite"),
    ],
)
def test_a_broken_rule_is_named_with_its_place(client, new_session, path, value, pointer, words):
    raw = json.dumps(put(new_session, path, value)).replace("Infinity", "1e400")
    answer = client.post("/v1/sessions", content=raw, headers={"Content-Type": "application/json"})
    errors = check_problem(answer, 422, "invalid_input")["errors"]
    found = {error["pointer"]: error["detail"] for error in errors}
    assert words in found[pointer]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (7, "must be a string"),
        (None, "must be a string"),
        ("", "must not be empty"),
        ("====", "must be base64"),
        ("AAA", "must be base64"),
        ("AAAAA", "must be base64"),
        ("AAAA\n", "must be base64"),
        (" AAAA", "must be base64"),
        ("AA-_", "must be base64"),
        ("AA==AA==", "must be base64"),
        ("ÄÄÄÄ", "must be base64"),
        ("\ud800AAA", "must be base64"),
        ("data:image/png;base64,AAAA", "drop everything up to the comma"),
    ],
)
@pytest.mark.parametrize("where", ["support", "query"])
def test_base64_is_checked_strictly_where_it_stands(client, new_session, text, words, where):
    new_session["model"] = "omniglot"
    if where == "support":
        new_session["support"][1]["input"] = {"image": text}
        pointer = "/support/1/input/image"
    else:
        new_session["query"] = [{"image": text}]
        pointer = "/query/0/image"
    raw = json.dumps(new_session)
    answer = client.post("/v1/sessions", content=raw, headers={"Content-Type": "application/json"})
    assert pointers(answer) == [pointer]
    assert words in answer.json()["errors"][0]["detail"]


def test_the_models_own_rules_are_named_with_their_place_too(client, new_session):
    new_session["support"][1]["input"] = {"values": [1, 2, 3]}
    assert pointers(client.post("/v1/sessions", json=new_session)) == ["/support/1/input/values"]


@pytest.mark.parametrize("label", ["x", "é" * 200, "\U0001f600" * 200, "\x00", " ", "<image>"])
def test_a_label_is_any_text_of_up_to_200_characters(client, new_session, label):
    new_session["support"][0]["label"] = label
    answer = client.post("/v1/sessions", json=new_session)
    assert answer.status_code == 201
    assert answer.json()["labels"] == [label, "high"]
    assert client.get(answer.headers["location"]).json()["shots"] == {label: 1, "high": 1}


def test_broken_rules_are_named_together(client):
    body = {"support": [{"label": 1}, {"input": {"values": ["x"]}}], "steps": "1", "more": 1}
    assert sorted(pointers(client.post("/v1/sessions", json=body))) == [
        "/more",
        "/steps",
        "/support/0/input",
        "/support/0/label",
        "/support/1/input/values/0",
        "/support/1/label",
    ]


def test_no_more_than_twenty_broken_rules_are_named(client):
    answer = client.post("/v1/sessions", json={"support": [{}] * 100})
    assert len(pointers(answer)) == 20
    assert "19 more" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("route", "body", "pointer"),
    [
        ("predictions", {}, "/query"),
        ("predictions", {"query": []}, "/query"),
        ("predictions", {"query": None}, "/query"),
        ("predictions", {"query": [{"values": [1]}], "top": 0}, "/top"),
        ("predictions", {"query": [{"values": [1]}], "steps": 1}, "/steps"),
        ("predictions", {"query": [{"image": "?"}]}, "/query/0/image"),
        ("examples", {}, "/support"),
        ("examples", {"support": []}, "/support"),
        ("examples", {"support": [GOOD], "query": []}, "/query"),
        ("examples", {"support": [{"label": "a", "input": {"values": []}}]}, None),
        ("evaluations", {}, "/examples"),
        ("evaluations", {"examples": []}, "/examples"),
        ("evaluations", {"support": [GOOD], "examples": [GOOD]}, "/support"),
        ("evaluations", {"examples": [GOOD]}, "/examples/0/label"),
    ],
)
def test_every_body_has_its_own_rules(client, session_url, route, body, pointer):
    answer = client.post(f"{session_url}/{route}", json=body)
    assert (pointer or "/support/0/input/values") in pointers(answer)


@pytest.mark.parametrize("levels", [40, 300, 900])
@pytest.mark.parametrize("field", ["metadata", "values", "unknown"])
def test_deep_nesting_is_refused_by_the_schema_where_the_parser_takes_it(
    client, new_session, levels, field
):
    nested = "[" * levels + "]" * levels
    if field == "values":
        raw = json.dumps(new_session).replace("[3, 3, 3, 3]", nested)
    elif field == "metadata":
        raw = json.dumps({**new_session, "metadata": {"a": 0}}).replace('"a": 0', f'"a": {nested}')
    else:
        raw = json.dumps({**new_session, "unknown": 0}).replace(
            '"unknown": 0', f'"unknown": {nested}'
        )
    answer = client.post("/v1/sessions", content=raw, headers={"Content-Type": "application/json"})
    assert pointers(answer)


def test_metadata_may_be_nested_to_a_sane_depth(client, new_session):
    metadata: dict = {}
    for _ in range(30):
        metadata = {"a": [metadata]} if "a" not in metadata else {"a": metadata}
    answer = client.post("/v1/sessions", json={**new_session, "metadata": metadata})
    assert answer.json()["metadata"] == metadata
