import json
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest

SMALL = {"INNERLOOP_MAX_SUPPORT": "8", "INNERLOOP_MAX_CLASSES": "8"}
"""Warm soon, for tests that ask little of the device."""


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", httpx2.URL(server.url).port), timeout=60)


def request_head(length: int) -> bytes:
    return (
        "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def wait_until_in_flight(server) -> None:
    figure = "\ninnerloop_http_requests_in_flight 1.0\n"
    server.wait_for(lambda: figure in server.client.get("/metrics").text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server_at_once_with_exit_code_0(start_server, number):
    with start_server(**SMALL, INNERLOOP_DRAIN_SECONDS="30") as server:
        began = time.monotonic()
        server.signal(number)
        assert server.wait() == 0
        assert time.monotonic() - began < 25
        assert "Traceback" not in server.log.read_text()


def test_a_server_that_is_still_warming_up_answers_probes_and_ends_by_a_signal(start_server):
    with start_server(until="live") as server:
        ready = server.client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["code"] in ("not_ready", "database_unavailable")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_request_in_flight_is_answered_and_a_new_one_is_told_to_try_again(start_server):
    body = json.dumps({"support": []}).encode()
    with start_server(**SMALL) as server, connect(server) as in_flight:
        in_flight.sendall(request_head(len(body)) + body[:5])
        wait_until_in_flight(server)
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: httpx2.get(f"{server.url}/v1/models").status_code == 503)
        late = httpx2.get(f"{server.url}/v1/models")
        assert late.json()["code"] == "draining"
        assert int(late.headers["retry-after"]) >= 1
        assert httpx2.get(f"{server.url}/health/live").status_code == 200
        in_flight.sendall(body[5:])
        status, answer = read_answer(in_flight)
        assert (status, json.loads(answer)["code"]) == (422, "invalid_input")
        assert server.wait() == 0


def test_a_caller_who_never_ends_cannot_hold_up_the_end(start_server):
    with start_server(**SMALL) as server, connect(server) as never_ending:
        never_ending.sendall(request_head(100) + b"{")
        wait_until_in_flight(server)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert 4 < time.monotonic() - began < 15  # INNERLOOP_DRAIN_SECONDS is 5


def test_a_server_without_models_says_so_in_one_line(server_environment, tmp_path):
    server_environment["INNERLOOP_MODELS_DIR"] = str(tmp_path / "none")
    command = [sys.executable, "-m", "app", "serve"]
    done = subprocess.run(command, env=server_environment, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("innerloop: there is no model in ")
