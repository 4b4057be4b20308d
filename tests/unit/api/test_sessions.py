import math
import re

import pytest
from safetensors.numpy import load

from app.database import SESSION_ID_PATTERN
from tests.fakes import make_card
from tests.unit.api.helpers import check_problem, picture

LOW = {"values": [0, 0, 0, 1]}
HIGH = {"values": [3, 3, 3, 2]}


def distance(x: dict, mean: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x["values"], mean, strict=True))


def probability_of_low(x: dict) -> float:
    """What the fake engine, a softmax over negative squared distances, must say."""
    low, high = distance(x, [0] * 4), distance(x, [3] * 4)
    return 1 / (1 + math.exp(low - high))


def test_a_new_session_is_answered_whole(client, new_session, resources):
    answer = client.post(
        "/v1/sessions",
        json={**new_session, "steps": 2, "ttl_seconds": 60, "metadata": {"user": "42"}},
    )
    body = answer.json()
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == f"/v1/sessions/{body['id']}"
    assert re.fullmatch(SESSION_ID_PATTERN, body.pop("id"))
    assert len(body.pop("support_loss")) == 3
    assert body == {
        "object": "session",
        "model": "values",
        "model_version": 1,
        "theta_sha256": resources.models.newest("values").theta_sha256,
        "task": "classification",
        "revision": 1,
        "labels": ["low", "high"],
        "shots": {"low": 1, "high": 1},
        "steps": 2,
        "created_at": "2026-01-01T00:00:00Z",
        "expires_at": "2026-01-01T00:01:00Z",
        "metadata": {"user": "42"},
        "predictions": None,
    }


def test_only_the_support_is_required(client, new_session):
    support = [
        {"input": {"image": picture(shade)}, "label": label}
        for shade, label in ((0, "ink"), (255, "paper"))
    ]
    body = client.post("/v1/sessions", json={"support": support}).json()
    assert body["model"] == "omniglot"
    assert body["steps"] == 5
    assert body["expires_at"] is None
    assert body["metadata"] == {}


def test_null_stands_for_the_default(client, new_session):
    nothing = dict.fromkeys(["query", "top", "steps", "ttl_seconds", "metadata"])
    answer = client.post("/v1/sessions", json={**new_session, **nothing})
    assert answer.status_code == 201
    assert answer.json()["steps"] == 3


def test_a_query_beside_the_support_is_answered_at_once(client, new_session):
    answer = client.post("/v1/sessions", json={**new_session, "query": [HIGH, LOW]})
    high, low = answer.json()["predictions"]
    assert high["label"] == "high"
    assert high["probabilities"]["low"] == pytest.approx(probability_of_low(HIGH))
    assert low["label"] == "low"
    assert low["probability"] == low["probabilities"]["low"]
    assert sum(low["probabilities"].values()) == pytest.approx(1)


def test_pictures_are_told_apart(client):
    support = [
        {"input": {"image": picture(shade)}, "label": label}
        for shade, label in ((0, "ink"), (255, "paper"))
    ]
    body = {"support": support, "query": [{"image": picture(40)}, {"image": picture(200)}]}
    predictions = client.post("/v1/sessions", json=body).json()["predictions"]
    assert [prediction["label"] for prediction in predictions] == ["ink", "paper"]


@pytest.mark.parametrize("where", ["create", "predict"])
def test_top_keeps_the_most_probable_labels(client, new_session, where):
    ask = {"query": [HIGH], "top": 1}
    if where == "create":
        [prediction] = client.post("/v1/sessions", json={**new_session, **ask}).json()[
            "predictions"
        ]
    else:
        url = client.post("/v1/sessions", json=new_session).headers["location"]
        [prediction] = client.post(f"{url}/predictions", json=ask).json()["data"]
    assert prediction["probabilities"] == {"high": prediction["probability"]}


def test_a_session_is_read_back_without_predictions(client, new_session):
    made = client.post("/v1/sessions", json={**new_session, "query": [LOW]})
    read = client.get(made.headers["location"])
    assert read.status_code == 200
    assert made.json()["predictions"] is not None
    assert read.json() == {**made.json(), "predictions": None}


def test_any_json_in_the_metadata_comes_back_as_it_came(client, new_session):
    metadata = {"": None, "é\x00": ["\U0001f600", 1e300, -0.5, 10**40, True, {"deep": [[]]}]}
    made = client.post("/v1/sessions", json={**new_session, "metadata": metadata})
    assert made.json()["metadata"] == metadata
    assert client.get(made.headers["location"]).json()["metadata"] == metadata


def test_predictions_name_the_session_and_its_revision(client, session, session_url):
    answer = client.post(f"{session_url}/predictions", json={"query": [LOW]})
    body = answer.json()
    assert answer.status_code == 200
    assert (body["object"], body["session"], body["revision"]) == ("list", session["id"], 1)
    [prediction] = body["data"]
    assert prediction["probabilities"]["low"] == pytest.approx(probability_of_low(LOW))


def test_added_examples_make_a_revision_with_their_labels(client, session, session_url):
    support = [
        {"input": {"values": [9, 9, 9, 9]}, "label": "new"},
        {"input": LOW, "label": "low"},
    ]
    answer = client.post(f"{session_url}/examples", json={"support": support})
    body = answer.json()
    assert answer.status_code == 200
    assert "location" not in answer.headers
    assert body["id"] == session["id"]
    assert body["revision"] == 2
    assert body["labels"] == ["low", "high", "new"]
    assert body["shots"] == {"low": 2, "high": 1, "new": 1}
    assert client.get(session_url).json() == body
    asked = client.post(f"{session_url}/predictions", json={"query": [{"values": [9, 9, 9, 8]}]})
    assert asked.json()["revision"] == 2
    assert asked.json()["data"][0]["label"] == "new"


def test_an_evaluation_counts_by_right_and_predicted_label(client, session_url):
    examples = [
        {"input": LOW, "label": "low"},
        {"input": LOW, "label": "low"},
        {"input": LOW, "label": "high"},
        {"input": HIGH, "label": "high"},
    ]
    answer = client.post(f"{session_url}/evaluations", json={"examples": examples})
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "evaluation"
    assert body["n"] == 4
    assert body["accuracy"] == 0.75
    assert body["confusion"] == {"low": {"low": 2, "high": 0}, "high": {"low": 1, "high": 1}}
    low, high = body["confidence_interval_95"]
    assert 0 < low < 0.75 < high < 1


def test_weights_are_a_safetensors_file_to_save(client, session, session_url):
    answer = client.get(f"{session_url}/weights")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    name = f"{session['id']}.safetensors"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert load(answer.content)["means"].tolist() == [[0, 0, 0, 0], [3, 3, 3, 3]]


def test_a_deleted_session_is_not_found(client, session_url):
    answer = client.delete(session_url)
    assert (answer.status_code, answer.content) == (204, b"")
    for again in (client.get(session_url), client.delete(session_url)):
        check_problem(again, 404, "session_not_found")


def test_pages_run_from_the_newest_to_the_oldest_session(client, new_session):
    made = [client.post("/v1/sessions", json=new_session).json()["id"] for _ in range(5)]
    newest_first = sorted(made, reverse=True)
    found: list[str] = []
    more = True
    while more:
        after = {"after": found[-1]} if found else {}
        page = client.get("/v1/sessions", params={"limit": 2, **after}).json()
        assert page["object"] == "list"
        assert len(page["data"]) <= 2
        found += [session["id"] for session in page["data"]]
        more = page["has_more"]
    assert found == newest_first


def test_a_page_holds_twenty_sessions_unless_told_otherwise(client, new_session):
    for _ in range(21):
        client.post("/v1/sessions", json=new_session)
    page = client.get("/v1/sessions").json()
    assert len(page["data"]) == 20
    assert page["has_more"] is True
    assert page["data"][0]["predictions"] is None


def test_sessions_are_listed_by_model(client, new_session, session, registry, engine):
    registry.put(make_card("other"))
    engine.read(registry)
    client.post("/v1/sessions", json={**new_session, "model": "other"})
    page = client.get("/v1/sessions", params={"model": "values"}).json()
    assert [found["id"] for found in page["data"]] == [session["id"]]
    assert client.get("/v1/sessions", params={"model": "none"}).json()["data"] == []
