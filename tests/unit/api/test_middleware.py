import re
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from app.services.store import view

SECRET = "do-not-log-me"


def ids(client, *sent: str) -> list[str]:
    return [
        client.get("/health/live", headers={"X-Request-ID": token}).headers["x-request-id"]
        for token in sent
    ]


def test_every_answer_has_a_fresh_request_id(client):
    paths = ["/health/live", "/nothing", "/v1/models", "/docs", "/openapi.json", "/metrics"]
    found = [client.get(path).headers["x-request-id"] for path in paths]
    assert len(set(found)) == len(paths)
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in found)


@pytest.mark.parametrize("token", ["a", "A-b_c.9:/+=", "x" * 128])
def test_a_plain_request_id_is_kept(client, token):
    assert ids(client, token) == [token]


@pytest.mark.parametrize("token", ["", "a b", "x" * 129, '"', "<script>", "a,b", "{}"])
def test_any_other_request_id_is_replaced(client, token):
    [found] = ids(client, token)
    assert re.fullmatch("[0-9a-f]{32}", found)


def test_a_request_is_one_line_in_the_log(client, session, session_url):
    with capture_logs() as lines:
        client.get(session_url, headers={"X-Request-ID": "me"})
    [line] = [line for line in lines if line["event"] == "request"]
    assert line.pop("duration_ms") > 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "route": "/v1/sessions/{session_id}",
        "status": 200,
    }


def test_neither_bodies_nor_keys_nor_query_strings_are_logged(client, new_session):
    with capture_logs() as lines:
        client.post(
            "/v1/sessions",
            json={**new_session, "metadata": {SECRET: SECRET}},
            headers={"Idempotency-Key": SECRET},
        )
        client.get(f"/v1/sessions?api_key={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})
        client.post("/v1/sessions", json={SECRET: SECRET})
    assert len(lines) == 3
    assert SECRET not in str(lines)


def test_an_unforeseen_error_leaves_its_traceback_in_the_log(client, engine, new_session):
    engine.refusal = RuntimeError("boom")
    with capture_logs() as lines:
        client.post("/v1/sessions", json=new_session)
    error, request = lines
    assert (error["event"], error["log_level"], error["exc_info"]) == (
        "unforeseen error",
        "error",
        True,
    )
    assert request["status"] == 500


def test_an_answer_that_breaks_its_schema_is_not_shown_in_the_log(client, session_url, monkeypatch):
    def broken(record):
        return view(replace(record, labels={SECRET: 1}))

    monkeypatch.setattr("app.services.sessions.view", broken)
    with capture_logs() as lines:
        answer = client.get(session_url)
    assert answer.status_code == 500
    [error] = [line for line in lines if line["event"] == "an answer breaks its own schema"]
    assert error["faults"] == [(("response", "labels"), "list_type")]
    assert SECRET not in str(lines)


def test_head_is_answered_like_get_without_the_body(client, session_url):
    for path in (session_url, f"{session_url}/weights", "/v1/models", "/docs", "/nothing"):
        got, head = client.get(path), client.head(path)
        assert head.status_code == got.status_code
        assert head.content == b""
        for header in ("content-type", "content-length"):
            assert head.headers[header] == got.headers[header]


def test_the_root_leads_to_the_documentation(client):
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in page.text
