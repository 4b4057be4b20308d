import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.api.helpers import check_problem

KEY = {"Idempotency-Key": "order-66/~"}
MORE = {"support": [{"input": {"values": [3, 3, 3, 4]}, "label": "high"}]}


def count(client) -> int:
    return len(client.get("/v1/sessions", params={"limit": 100}).json()["data"])


def test_the_same_request_again_gets_the_same_session(client, new_session):
    body = {**new_session, "query": [{"values": [0, 0, 0, 1]}], "metadata": {"ß": 1}}
    first = client.post("/v1/sessions", json=body, headers=KEY)
    again = client.post("/v1/sessions", json=body, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert count(client) == 1


def test_the_order_of_the_fields_and_the_white_space_do_not_matter(client, new_session):
    turned = json.dumps(dict(reversed(new_session.items())), indent=3)
    first = client.post("/v1/sessions", json=new_session, headers=KEY)
    again = client.post(
        "/v1/sessions", content=turned, headers={**KEY, "Content-Type": "application/json"}
    )
    assert again.json() == first.json()


def test_the_key_with_another_body_is_a_conflict_and_changes_nothing(client, new_session):
    client.post("/v1/sessions", json=new_session, headers=KEY)
    answer = client.post("/v1/sessions", json={**new_session, "steps": 1}, headers=KEY)
    check_problem(answer, 409, "idempotency_conflict")
    assert count(client) == 1


def test_the_key_on_another_path_is_a_conflict(client, new_session):
    body = {"support": new_session["support"]}
    url = client.post("/v1/sessions", json=new_session).headers["location"]
    client.post(f"{url}/examples", json=body, headers=KEY)
    check_problem(
        client.post("/v1/sessions", json=body | {"model": "values"}, headers=KEY),
        409,
        "idempotency_conflict",
    )


def test_examples_sent_twice_with_one_key_are_added_once(client, session_url):
    first = client.post(f"{session_url}/examples", json=MORE, headers=KEY)
    again = client.post(f"{session_url}/examples", json=MORE, headers=KEY)
    assert first.json()["revision"] == again.json()["revision"] == 2
    assert again.json() == first.json()
    assert client.get(session_url).json()["shots"]["high"] == 2


def test_a_request_that_failed_may_be_mended_under_its_key(client, new_session):
    wrong = client.post("/v1/sessions", json={**new_session, "model": "none"}, headers=KEY)
    assert wrong.status_code == 404
    assert client.post("/v1/sessions", json=new_session, headers=KEY).status_code == 201


def test_without_a_key_every_request_makes_a_session(client, new_session):
    ids = {client.post("/v1/sessions", json=new_session).json()["id"] for _ in range(3)}
    assert len(ids) == 3


def test_a_key_of_255_characters_is_taken(client, new_session):
    headers = {"Idempotency-Key": "!~" * 127 + "x"}
    assert client.post("/v1/sessions", json=new_session, headers=headers).status_code == 201


def test_two_keys_in_one_request_are_refused(client, new_session):
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = client.post("/v1/sessions", json=new_session, headers=headers)
    [error] = check_problem(answer, 422, "invalid_input")["errors"]
    assert error["pointer"] == "#/parameters/Idempotency-Key"


@pytest.mark.parametrize("callers", [8])
def test_requests_at_once_with_one_key_make_one_session(client, new_session, callers):
    with ThreadPoolExecutor(callers) as pool:
        posts = [
            pool.submit(client.post, "/v1/sessions", json=new_session, headers=KEY)
            for _ in range(callers)
        ]
        answers = [post.result() for post in posts]
    assert [answer.status_code for answer in answers] == [201] * callers
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert count(client) == 1


def test_examples_at_once_with_one_key_are_added_once(client, session_url):
    with ThreadPoolExecutor(8) as pool:
        posts = [
            pool.submit(client.post, f"{session_url}/examples", json=MORE, headers=KEY)
            for _ in range(8)
        ]
        answers = [post.result() for post in posts]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert client.get(session_url).json()["revision"] == 2
