import base64
import json
import socket
from io import BytesIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx2
import pytest
from PIL import Image, ImageDraw


def drawing(*strokes: tuple[int, int, int, int]) -> dict:
    """An input of dark strokes on a light ground, 28 x 28."""
    image = Image.new("L", (28, 28), 255)
    for stroke in strokes:
        ImageDraw.Draw(image).line(stroke, fill=0, width=3)
    file = BytesIO()
    image.save(file, "PNG")
    return {"image": base64.b64encode(file.getvalue()).decode()}


def cross(shift: int) -> dict:
    return drawing((4 + shift, 4, 23 + shift, 23), (23 + shift, 4, 4 + shift, 23))


def bar(shift: int) -> dict:
    return drawing((14 + shift, 3, 14 + shift, 25))


def ring(shift: int) -> dict:
    return drawing(
        (6 + shift, 6, 20 + shift, 6),
        (20 + shift, 6, 20 + shift, 20),
        (20 + shift, 20, 6 + shift, 20),
        (6 + shift, 20, 6 + shift, 6),
    )


def support(*shifts: int) -> list[dict]:
    makers = {"cross": cross, "bar": bar, "ring": ring}
    return [
        {"input": make(shift), "label": label} for label, make in makers.items() for shift in shifts
    ]


@pytest.fixture(scope="module")
def session(server) -> dict:
    answer = server.client.post("/v1/sessions", json={"support": support(0)})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_session_made_of_drawings_tells_them_apart(client, session):
    query = {"query": [cross(1), bar(-1), ring(1)]}
    answer = client.post(f"/v1/sessions/{session['id']}/predictions", json=query)
    assert answer.status_code == 200
    assert [found["label"] for found in answer.json()["data"]] == ["cross", "bar", "ring"]


def test_a_query_is_answered_alike_alone_and_in_company(client, session):
    url = f"/v1/sessions/{session['id']}/predictions"
    [alone] = client.post(url, json={"query": [cross(2)]}).json()["data"]
    *_, last = client.post(url, json={"query": [bar(0), ring(0), cross(2)]}).json()["data"]
    for label, probability in alone["probabilities"].items():
        assert last["probabilities"][label] == pytest.approx(probability, abs=1e-5)


def test_what_is_not_there_is_a_problem_document(client):
    for path in ("/nothing", "/v1/sessions/ses_x", "/v1/models/none"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_body_in_chunks_may_not_grow_without_bound(client):
    chunks = (b" " * 65_536 for _ in range(64))  # 4 MiB, and the limit of the tests is 1 MB
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/sessions", content=chunks, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["code"] == "content_too_large"


@pytest.mark.parametrize(
    ("path", "media_type", "status"),
    [
        ("/v1/sessions", "application/json", 413),
        ("/v1/sessions", "text/plain", 415),
        ("/v1/models", "application/json", 405),
        ("/nothing", "application/json", 404),
    ],
)
def test_who_sends_all_of_a_large_body_first_and_closes_sees_the_answer(
    server, path, media_type, status
):
    for _ in range(3):
        request = Request(server.url + path, b"x" * 20_000_000, {"Content-Type": media_type})
        with pytest.raises(HTTPError) as refused:
            urlopen(request, timeout=60)
        with refused.value as answer:
            assert (answer.status, json.load(answer)["status"]) == (status, status)


def test_who_asks_whether_to_send_a_large_body_is_answered_at_once(server):
    port = httpx2.URL(server.url).port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 90000000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_head_request_gets_no_body(client):
    answer = client.head("/v1/models")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("request_line", [b"NONSENSE", b"GET /v1/sessions?after=\xff HTTP/1.1"])
def test_what_is_no_http_is_a_problem_document_too(server, request_line):
    port = httpx2.URL(server.url).port
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request_line + b"\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["code"] == "malformed_request"


def test_the_log_is_one_json_object_a_line_and_holds_no_bodies(client, server, session):
    client.get(f"/v1/sessions/{session['id']}", headers={"X-Request-ID": "find-me"})
    [line] = server.wait_for(lambda: server.logged(request_id="find-me"))
    assert (line["method"], line["status"]) == ("GET", 200)
    assert line["route"] == "/v1/sessions/{session_id}"
    assert "cross" not in server.log.read_text()
