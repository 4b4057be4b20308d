import pytest

from tests.unit.api.helpers import pointers

ID = "ses_" + "0" * 32


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "", "1.0", "1e1", " 5", "+5", "1_0", "x", "٣", "9" * 30]
)
def test_a_limit_is_a_number_from_1_to_100(client, limit):
    answer = client.get("/v1/sessions", params={"limit": limit})
    assert pointers(answer) == ["#/parameters/limit"]


@pytest.mark.parametrize("limit", ["1", "100"])
def test_the_bounds_of_the_limit_are_within(client, limit):
    assert client.get("/v1/sessions", params={"limit": limit}).status_code == 200


@pytest.mark.parametrize(
    "after", ["", "x", ID[:-1], ID + "0", ID.upper(), ID + "\n", "\x00", "ses_" + "g" * 32]
)
def test_after_looks_like_a_session_id(client, after):
    answer = client.get("/v1/sessions", params={"after": after})
    assert pointers(answer) == ["#/parameters/after"]


def test_after_need_not_exist(client, session):
    assert client.get("/v1/sessions", params={"after": ID}).json()["data"] == []


@pytest.mark.parametrize("model", ["", "A", "a b", "a\n", "../a", "x" * 64, "\x00"])
def test_a_model_to_list_by_looks_like_a_name(client, model):
    answer = client.get("/v1/sessions", params={"model": model})
    assert pointers(answer) == ["#/parameters/model"]


def test_invalid_parameters_are_named_together(client):
    answer = client.get("/v1/sessions?limit=0&after=x")
    assert pointers(answer) == ["#/parameters/limit", "#/parameters/after"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/sessions"),
        ("GET", "/v1/sessions"),
        ("GET", f"/v1/sessions/{ID}"),
        ("DELETE", f"/v1/sessions/{ID}"),
        ("GET", f"/v1/sessions/{ID}/weights"),
        ("POST", f"/v1/sessions/{ID}/predictions"),
        ("POST", f"/v1/sessions/{ID}/examples"),
        ("POST", f"/v1/sessions/{ID}/evaluations"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/omniglot"),
    ],
)
def test_an_unknown_parameter_is_refused_everywhere(client, method, path):
    answer = client.request(method, f"{path}?unknown=1&api_key=")
    assert pointers(answer) == ["#/parameters/unknown", "#/parameters/api_key"]


def test_a_parameter_must_not_be_given_twice(client):
    answer = client.get("/v1/sessions?limit=1&limit=2")
    assert pointers(answer) == ["#/parameters/limit"]
    assert "twice" in answer.json()["detail"]


@pytest.mark.parametrize("key", ["", "a b", "a\tb", "x" * 256, "é".encode("latin-1"), b"a\x7f"])
@pytest.mark.parametrize("route", ["/v1/sessions", "/v1/sessions/{id}/examples"])
def test_an_idempotency_key_is_visible_ascii(client, new_session, session, key, route):
    support = {"support": new_session["support"]}
    answer = client.post(
        route.format(id=session["id"]), json=support | {}, headers={"Idempotency-Key": key}
    )
    assert pointers(answer) == ["#/parameters/Idempotency-Key"]
