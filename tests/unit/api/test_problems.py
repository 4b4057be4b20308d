import json
from dataclasses import replace
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from app.api.app import create_app
from app.api.problems import ERRORS, Problem
from app.errors import (
    Contention,
    DatabaseUnavailable,
    Draining,
    EngineFailed,
    IdempotencyConflict,
    InvalidInput,
    InvalidSafetensors,
    Issue,
    ModelNotFound,
    ModelVersionGone,
    NotReady,
    QueueFull,
    RegistryError,
    SessionExpired,
    SessionNotFound,
    Unavailable,
)
from tests.fakes import make_card
from tests.unit.api.helpers import check_problem, pointers

ID = "ses_" + "0" * 32


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (InvalidInput([Issue("/a", "is wrong")]), 422, "invalid_input", None),
        (InvalidSafetensors("no tensors"), 400, "invalid_safetensors", None),
        (SessionNotFound("no such session"), 404, "session_not_found", None),
        (ModelNotFound("no such model"), 404, "model_not_found", None),
        (SessionExpired("it is over"), 410, "session_expired", None),
        (ModelVersionGone("it is gone"), 410, "model_version_gone", None),
        (IdempotencyConflict("another request"), 409, "idempotency_conflict", None),
        (Unavailable("not now", 7), 503, "unavailable", "7"),
        (QueueFull("full"), 503, "queue_full", "1"),
        (Draining("ending", 5), 503, "draining", "5"),
        (NotReady("cold"), 503, "not_ready", "1"),
        (EngineFailed("broken"), 503, "engine_failed", "1"),
        (DatabaseUnavailable("silent", 0), 503, "database_unavailable", "1"),
        (Contention("too many"), 503, "contention", "1"),
    ],
)
def test_every_error_has_its_status_and_its_code(
    client, engine, new_session, error, status, code, retry_after
):
    engine.refusal = error
    answer = client.post("/v1/sessions", json=new_session)
    problem = check_problem(answer, status, code)
    assert str(error) in problem["detail"]
    assert answer.headers.get("retry-after") == retry_after


def test_the_table_above_is_complete():
    [mark] = test_every_error_has_its_status_and_its_code.pytestmark
    assert {type(row[0]) for row in mark.args[1]} == set(ERRORS)


def test_a_draining_server_asks_to_close_the_connection(client, engine, new_session):
    engine.refusal = Draining("ending")
    assert client.post("/v1/sessions", json=new_session).headers["connection"] == "close"


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), RegistryError("secret"), KeyError("secret")]
)
def test_an_unforeseen_error_answers_500_and_tells_nothing(client, engine, new_session, error):
    engine.refusal = error
    answer = client.post("/v1/sessions", json=new_session)
    check_problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


def test_an_answer_of_ours_that_is_not_finite_is_an_error_of_ours(
    client, resources, session_url, monkeypatch
):
    async def wrong(*_):
        return replace(await right(*_), support_loss=[float("nan")])

    right = type(resources.sessions).get
    monkeypatch.setattr(type(resources.sessions), "get", wrong)
    check_problem(client.get(session_url), 500, "internal_error")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1",
        "/v1/sessions/",
        f"/v1/sessions/{ID}/",
        "/v1/sessions/x/y/z",
        "//",
        "/docs/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_an_unknown_path_is_not_found(client, method, path):
    answer = client.request(method, f"http://testserver{path}", follow_redirects=False)
    assert check_problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/sessions", "GET, HEAD, POST, OPTIONS"),
        (f"/v1/sessions/{ID}", "GET, HEAD, DELETE, OPTIONS"),
        (f"/v1/sessions/{ID}/predictions", "POST, OPTIONS"),
        (f"/v1/sessions/{ID}/weights", "GET, HEAD, OPTIONS"),
        ("/v1/models/omniglot", "GET, HEAD, OPTIONS"),
        ("/health/ready", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_path_names_its_methods(client, path, methods):
    refused = client.put(path, json={})
    check_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == methods
    asked = client.options(path)
    assert (asked.status_code, asked.content, asked.headers["allow"]) == (204, b"", methods)


@pytest.mark.parametrize(
    "session_id", [ID, "x", "%00", "ses_%C3%A9", "ses_" + "0" * 5000, "..%2f", "{id}"]
)
def test_whatever_is_no_session_of_the_caller_is_not_found(client, session_id):
    for method, rest, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/weights", None),
        ("POST", "/predictions", {"query": [{"values": [0, 0, 0, 0]}]}),
        ("POST", "/examples", {"support": [{"input": {"values": [0, 0, 0, 0]}, "label": "a"}]}),
        ("POST", "/evaluations", {"examples": [{"input": {"values": [0, 0, 0, 0]}, "label": "a"}]}),
    ):
        answer = client.request(method, f"/v1/sessions/{session_id}{rest}", json=body)
        check_problem(answer, 404, "not_found" if "%2f" in session_id else "session_not_found")


def test_another_owners_session_cannot_be_told_from_none(client, session, session_url, monkeypatch):
    theirs = client.get(session_url.replace(session["id"], ID)).json()
    monkeypatch.setattr("app.api.auth.OWNER", "another")
    ours = client.get(session_url).json()
    assert ours["code"] == theirs["code"] == "session_not_found"
    assert ours["detail"].replace(session["id"], ID) == theirs["detail"]


def test_a_session_past_its_time_is_gone_for_good(client, new_session, clock):
    url = client.post("/v1/sessions", json={**new_session, "ttl_seconds": 10}).headers["location"]
    clock.time += timedelta(seconds=9)
    assert client.get(url).status_code == 200
    clock.time += timedelta(seconds=1)
    query = {"query": [{"values": [0, 0, 0, 0]}]}
    check_problem(client.get(url), 410, "session_expired")
    check_problem(client.post(f"{url}/predictions", json=query), 410, "session_expired")
    assert client.get("/v1/sessions").json()["data"] == []
    assert client.delete(url).status_code == 204


def test_a_session_whose_model_version_left_is_gone(client, registry, session_url):
    registry.remove("values", 1)
    registry.put(make_card("values", 2))
    check_problem(client.get(session_url), 410, "model_version_gone")


@pytest.mark.parametrize("model", ["none", "../values", "a\x00b", "values/1", "VALUES"])
def test_an_unknown_model_is_not_found(client, new_session, model):
    answer = client.post("/v1/sessions", json={**new_session, "model": model})
    check_problem(answer, 404, "model_not_found")


@pytest.mark.parametrize(
    ("raw", "pointer"),
    [
        (rb'{"\ud800": 1}', ""),
        (rb'{"support": [{"\ud800": 1}]}', "/support/0"),
        (rb'{"support": [{"input": {"values": [1], "\ud800": 1}}]}', "/support/0/input"),
    ],
)
def test_a_name_that_is_no_unicode_is_refused(client, raw, pointer):
    answer = client.post("/v1/sessions", content=raw, headers={"Content-Type": "application/json"})
    assert pointer in pointers(answer)


def test_words_that_are_no_unicode_are_sent_as_question_marks():
    answer = Problem(404, "a", "A", "no \ud800").response("1")
    assert json.loads(answer.body)["detail"] == "no ?"


def test_before_the_database_is_there_sessions_are_unavailable(
    settings, resources, monkeypatch, new_session
):
    def silent():
        raise DatabaseUnavailable("silent")

    monkeypatch.setattr(resources.database, "migrate", silent)
    with TestClient(create_app(settings, resources)) as client:
        answer = client.post("/v1/sessions", json=new_session)
        check_problem(answer, 503, "database_unavailable")
        assert client.get("/v1/models").status_code == 200
