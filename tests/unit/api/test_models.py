import pytest

from tests.fakes import make_card
from tests.unit.api.helpers import check_problem


def test_models_are_listed_by_name_at_their_newest_version(client, registry, engine):
    registry.put(make_card("values", 2))
    engine.read(registry)
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [(model["name"], model["version"]) for model in body["data"]] == [
        ("omniglot", 1),
        ("values", 2),
    ]
    assert body["data"][1]["versions"] == [1, 2]


def test_a_model_says_what_it_takes_how_it_adapts_and_what_was_measured(
    client, resources, settings
):
    card = resources.models.newest("values")
    model = client.get("/v1/models/values").json()
    assert model["object"] == "model"
    assert model["task"] == "classification"
    assert model["input"] == {
        "kind": "values",
        "shape": [4],
        "dark_on_light": False,
        "mean": None,
        "scale": None,
    }
    assert model["alpha"] == {"weight": [0.1, 0.1, 0.1]}
    assert model["steps"] == 3
    assert model["theta_sha256"] == card.theta_sha256
    assert model["description"] == card.description
    assert model["figures"] == [card.figures[0].model_dump(mode="json")]
    assert model["limits"] == {
        "max_classes": settings.max_classes,
        "max_support": settings.max_support,
        "max_query": settings.max_query,
        "max_steps": settings.max_steps,
        "max_image_pixels": settings.max_image_pixels,
        "max_metadata_bytes": settings.max_metadata_bytes,
        "max_ttl_seconds": settings.max_ttl_seconds,
        "max_body_bytes": settings.max_body_bytes,
    }


def test_one_model_is_the_default(client, settings):
    models = client.get("/v1/models").json()["data"]
    assert [model["name"] for model in models if model["default"]] == [settings.default_model]


def test_a_model_stands_in_the_list_as_it_stands_alone(client):
    listed = client.get("/v1/models").json()["data"]
    assert listed == [client.get(f"/v1/models/{model['name']}").json() for model in listed]


@pytest.mark.parametrize("most", [1, 2, 10])
def test_a_model_says_the_steps_of_a_session_that_asks_for_none(
    client, settings, new_session, monkeypatch, most
):
    monkeypatch.setitem(vars(settings), "max_steps", most)
    told = client.get("/v1/models/values").json()["steps"]
    assert told == client.post("/v1/sessions", json=new_session).json()["steps"] <= most


def test_a_model_that_is_not_there_is_not_found(client):
    for name in ("none", "OMNIGLOT", "omniglot%00", "%F0%9F%98%80", "x" * 3000):
        check_problem(client.get(f"/v1/models/{name}"), 404, "model_not_found")


def test_what_the_engine_does_not_hold_is_not_offered(client, registry, engine):
    before = client.get("/v1/models").json()
    for card in (make_card("sine", task="regression", figures=()), make_card("values", 2)):
        registry.put(card)
    assert client.get("/v1/models").json() == before
    problem = check_problem(client.get("/v1/models/sine"), 404, "model_not_found")
    assert "Models here: omniglot, values." in problem["detail"]
    assert client.get("/v1/models/values").json()["version"] == 1
    engine.read(registry)
    assert client.get("/v1/models/values").json()["versions"] == [1, 2]
