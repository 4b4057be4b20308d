"""A session that was answered with 201 outlives a SIGKILL at any moment."""

import signal
import threading
import time

import httpx2
import pytest

CALLERS = 4
START_SECONDS = 30
"""Longest wait for the first session, from which on the time to the kill counts."""


@pytest.mark.parametrize("seconds", [0.3, 1.1])
def test_every_session_answered_with_201_is_there_after_a_kill(start_server, drawing, seconds):
    created: list[dict] = []
    bodies = [
        {"support": [{"input": drawing(c, hand), "label": f"{c}"} for c in range(3)]}
        for hand in range(CALLERS)
    ]

    def keep_creating(url, body):
        with httpx2.Client(base_url=url, timeout=30) as client:
            while True:
                try:
                    response = client.post("/v1/sessions", json=body)
                except httpx2.TransportError:
                    return  # the server is dead
                if response.status_code == 201:
                    created.append(response.json())

    with start_server() as server:
        threads = [threading.Thread(target=keep_creating, args=(server.url, b)) for b in bodies]
        for thread in threads:
            thread.start()
        give_up = time.monotonic() + START_SECONDS
        while not created and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(seconds)
        server.signal(signal.SIGKILL)
        server.wait()
        for thread in threads:
            thread.join()

    assert created, "nothing was created before the kill, so this shows nothing"
    with start_server() as server:
        for session in created:
            answer = server.client.get(f"/v1/sessions/{session['id']}")
            assert answer.status_code == 200, answer.text
            assert answer.json() == session
