"""The document is pinned: a change of the contract shows in review.

To take a change over: UPDATE_OPENAPI=1 pytest tests/unit/api/test_openapi.py
"""

import json
import os
from pathlib import Path

import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator

from app.api.app import create_app
from app.api.problems import ERRORS, MALFORMED, MEDIA_TYPE, STATUSES
from app.errors import (
    Contention,
    DatabaseUnavailable,
    Draining,
    EngineFailed,
    NotReady,
    QueueFull,
    Unavailable,
)
from app.settings import Settings

PINNED = Path(__file__).parent / "openapi.json"
ID = "ses_" + "0" * 32
SESSION = "/v1/sessions/{session_id}"
OPERATIONS = [
    ("post", "/v1/sessions"),
    ("get", "/v1/sessions"),
    ("get", SESSION),
    ("delete", SESSION),
    ("get", f"{SESSION}/weights"),
    ("post", f"{SESSION}/predictions"),
    ("post", f"{SESSION}/examples"),
    ("post", f"{SESSION}/evaluations"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{name}"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
    ("get", "/metrics"),
]


@pytest.fixture(scope="module")
def document() -> dict:
    return create_app(Settings()).openapi()


def errors(document: dict, schema: dict, value: object) -> list[str]:
    whole = {**schema, "components": document["components"]}
    checker = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in checker.iter_errors(value)]


def check_answer(document: dict, template: str, answer) -> None:
    """Check an answer against the document: status, media type, body, and headers."""
    operation = document["paths"][template][answer.request.method.lower()]
    assert str(answer.status_code) in operation["responses"], answer.text
    described = operation["responses"][str(answer.status_code)]
    assert set(described["headers"]) <= {
        name.title().replace("-Id", "-ID") for name in answer.headers
    }
    if "content" not in described:
        assert answer.content == b""
        return
    [media_type] = [
        name for name in described["content"] if answer.headers["content-type"].startswith(name)
    ]
    if media_type.endswith("json"):
        schema = described["content"][media_type]["schema"]
        assert errors(document, schema, answer.json()) == []


def test_the_document_is_the_pinned_one(document):
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if "UPDATE_OPENAPI" in os.environ:
        PINNED.write_text(text)
    assert text == PINNED.read_text(), "see the head of this file"


def test_the_document_is_valid_openapi_with_valid_schemas(document):
    assert OpenAPI.model_validate(document).openapi.startswith("3.1")
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_the_document_is_served_as_it_is(client, document):
    assert client.get("/openapi.json").json() == document


def test_the_document_describes_every_route(document):
    described = [(method, path) for path, item in document["paths"].items() for method in item]
    assert sorted(described) == sorted(OPERATIONS)


def test_every_code_of_a_problem_is_explained_at_the_head(document):
    codes = {cls.code for cls in ERRORS} | {code for code, _ in STATUSES.values()}
    codes.add(MALFORMED.code)
    assert all(f"`{code}`" in document["info"]["description"] for code in codes)


def test_every_example_fits_its_schema(document):
    found = 0
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", []):
            assert errors(document, schema, example) == []
            found += 1
    for _, path in OPERATIONS:
        for operation in document["paths"][path].values():
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    for example in content.get("examples", {}).values():
                        assert errors(document, content["schema"], example["value"]) == []
                        found += 1
    assert found > 50


def test_the_example_requests_work_as_they_stand(client, document):
    schemas = document["components"]["schemas"]
    [new_session] = schemas["NewSession"]["examples"]
    made = client.post("/v1/sessions", json=new_session)
    check_answer(document, "/v1/sessions", made)
    assert made.status_code == 201
    url = made.headers["location"]
    for route, schema in (
        ("predictions", "NewQuery"),
        ("examples", "MoreExamples"),
        ("evaluations", "NewEvaluation"),
    ):
        [body] = schemas[schema]["examples"]
        answer = client.post(f"{url}/{route}", json=body)
        check_answer(document, f"{SESSION}/{route}", answer)
        assert answer.status_code == 200


def test_every_success_is_as_described_and_nothing_more(client, document, session_url):
    for template in (
        "/v1/sessions",
        SESSION,
        f"{SESSION}/weights",
        "/v1/models",
        "/v1/models/{name}",
        "/health/live",
        "/health/ready",
        "/metrics",
    ):
        path = template.replace(SESSION, session_url).replace("{name}", "values")
        answer = client.get(path)
        assert answer.status_code == 200
        check_answer(document, template, answer)
        if answer.headers["content-type"] == "application/json":
            content = document["paths"][template]["get"]["responses"]["200"]["content"]
            name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert set(answer.json()) == set(document["components"]["schemas"][name]["properties"])
    check_answer(document, SESSION, client.delete(session_url))


@pytest.mark.parametrize(("method", "template"), OPERATIONS[:10])
def test_refusals_are_as_described(client, document, method, template):
    path = template.format(session_id=ID, name="none")
    json_body = {"headers": {"Content-Type": "application/json"}}
    check_answer(document, template, client.request(method, f"{path}?x=1"))
    check_answer(document, template, client.request(method, path))
    if method == "post":
        for content in (b"", b"{", b"[]", b"{}", b" " * 100_001):
            answer = client.post(path, content=content, **json_body)
            assert answer.status_code >= 400
            check_answer(document, template, answer)
        check_answer(document, template, client.post(path, content=b"{}"))
    client.app_state["lifecycle"].draining = True
    check_answer(document, template, client.request(method, path))


@pytest.mark.parametrize(
    "error",
    [Unavailable, QueueFull, Draining, NotReady, EngineFailed, DatabaseUnavailable, Contention],
)
@pytest.mark.parametrize("route", ["predictions", "evaluations", "weights", "examples"])
def test_trouble_with_the_device_is_as_described(
    client, document, engine, session_url, route, error
):
    engine.refusal = error("trouble")
    item = {"values": [0, 0, 0, 0]}
    bodies = {
        "predictions": {"query": [item]},
        "evaluations": {"examples": [{"input": item, "label": "low"}]},
        "examples": {"support": [{"input": item, "label": "low"}]},
    }
    url = f"{session_url}/{route}"
    answer = client.get(url) if route == "weights" else client.post(url, json=bodies[route])
    assert answer.status_code == 503
    check_answer(document, f"{SESSION}/{route}", answer)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"support": []},
        {"support": [{"input": {"values": [1]}}]},
        {"support": [{"input": {"values": [1]}, "label": ""}]},
        {"support": [{"input": {"values": [["1"]]}, "label": "a"}]},
        {"support": [{"input": {"values": [1], "image": "AAAA"}, "label": "a"}]},
        {"support": [{"input": {"values": [1]}, "label": "a"}], "more": 1},
        {"support": [{"input": {"values": [1]}, "label": "a"}], "steps": 0},
        {"support": [{"input": {"values": [1]}, "label": "a"}], "metadata": []},
    ],
)
def test_the_documents_schema_refuses_what_the_server_refuses(client, document, body):
    schema = {"$ref": "#/components/schemas/NewSession"}
    assert errors(document, schema, body) != []
    assert client.post("/v1/sessions", json=body).status_code == 422


def test_a_problem_is_never_described_as_plain_json(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == [MEDIA_TYPE], (method, path, status)
                    assert ("Retry-After" in response["headers"]) == (status == "503")
