"""A running server takes in what was added to the models folder, on SIGHUP."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest

SMALL = {"INNERLOOP_MAX_SUPPORT": "8", "INNERLOOP_MAX_CLASSES": "8"}


@pytest.fixture
def models(models_folder, tmp_path) -> Path:
    """A models folder of the test's own, with the oldest version of the bundled model."""
    folder = tmp_path / "models"
    oldest = min((models_folder / "omniglot").glob("*/card.json"), key=lambda path: path.parent)
    put(oldest.parent, folder, "omniglot", 1)
    return folder


def put(source: Path, models: Path, name: str, version: int) -> Path:
    """Copies a version under another name and number."""
    target = models / name / str(version)
    target.mkdir(parents=True)
    shutil.copy(source / "theta.safetensors", target)
    card = json.loads((source / "card.json").read_text()) | {"name": name, "version": version}
    (target / "card.json").write_text(json.dumps(card))
    return target


def versions(client: httpx2.Client) -> dict[str, list[int]]:
    return {model["name"]: model["versions"] for model in client.get("/v1/models").json()["data"]}


def new_session(drawing, **more) -> dict:
    support = [{"input": drawing(c, hand), "label": f"{c}"} for c in range(3) for hand in range(2)]
    return {"support": support, "query": [drawing(c, 5) for c in range(3)], **more}


def test_new_versions_are_served_after_a_signal_and_no_request_notices(
    start_server, models, drawing
):
    body, url = new_session(drawing), "/v1/sessions"
    with start_server(INNERLOOP_MODELS_DIR=str(models), **SMALL) as server:
        pinned = server.client.post(url, json=body).json()
        for name, version in (("omniglot", 2), ("other", 1)):
            put(models / "omniglot" / "1", models, name, version)
        broken = put(models / "omniglot" / "1", models, "broken", 1)
        (broken / "theta.safetensors").write_bytes(b"no theta")
        assert versions(server.client) == {"omniglot": [1]}
        assert server.client.post(url, json=body).json()["model_version"] == 1
        assert server.client.post(url, json=body | {"model": "other"}).status_code == 404

        answers, ended = [], threading.Event()

        def keep_asking() -> None:
            with httpx2.Client(base_url=server.url, timeout=60) as client:
                while not ended.is_set():
                    answers.append(client.post(url, json=body))

        callers = [threading.Thread(target=keep_asking) for _ in range(2)]
        for caller in callers:
            caller.start()
        server.signal(signal.SIGHUP)
        server.signal(signal.SIGHUP)
        server.wait_for(lambda: versions(server.client).keys() == {"omniglot", "other"})
        ended.set()
        for caller in callers:
            caller.join()

        assert {answer.status_code for answer in answers} == {201}
        seen = [answer.json()["model_version"] for answer in answers]
        assert seen[0] == 1, "the new version was there before it was warm"
        assert versions(server.client) == {"omniglot": [1, 2], "other": [1]}
        assert server.client.post(url, json=body).json()["model_version"] == 2
        assert server.client.post(url, json=body | {"model": "other"}).status_code == 201
        assert server.client.get("/health/ready").status_code == 200

        again = {"query": body["query"]}
        answer = server.client.post(f"{url}/{pinned['id']}/predictions", json=again).json()
        assert server.client.get(f"{url}/{pinned['id']}").json()["model_version"] == 1
        for found, expected in zip(answer["data"], pinned["predictions"], strict=True):
            assert found["label"] == expected["label"]
            assert found["probability"] == pytest.approx(expected["probability"], abs=1e-5)

        left_out = server.wait_for(lambda: server.logged(event="a version is left out"))
        assert {line["folder"] for line in left_out} == {str(broken)}
        assert str(broken / "theta.safetensors") in left_out[0]["reason"]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize("content", ["no card", None])
def test_a_card_that_is_broken_or_changed_while_it_is_served_is_not_noticed(
    start_server, models, drawing, content
):
    card = models / "omniglot" / "1" / "card.json"
    changed = json.loads(card.read_text()) | {"description": "Another."}
    body, url = new_session(drawing), "/v1/sessions"
    with start_server(INNERLOOP_MODELS_DIR=str(models), **SMALL) as server:
        described = server.client.get("/v1/models/omniglot").json()["description"]
        session = server.client.post(url, json=body).json()
        card.write_text(json.dumps(changed) if content is None else content)

        def check_all(description: str) -> None:
            told = server.client.get("/v1/models/omniglot").json()
            assert told["description"] == description
            assert server.client.post(url, json=body).status_code == 201
            answer = server.client.post(
                f"{url}/{session['id']}/predictions", json={"query": body["query"]}
            )
            assert answer.status_code == 200, answer.text

        check_all(described)
        server.signal(signal.SIGHUP)
        if content is None:
            server.wait_for(lambda: len(server.logged(event="a version is served")) == 1)
            check_all("Another.")
        else:
            (line,) = server.wait_for(lambda: server.logged(event="a version is left out"))
            assert str(card) in line["reason"]
            check_all(described)


def test_a_signal_during_the_start_is_not_lost_and_ends_nothing(start_server, models):
    with start_server(until="live", INNERLOOP_MODELS_DIR=str(models), **SMALL) as server:
        put(models / "omniglot" / "1", models, "omniglot", 2)
        server.signal(signal.SIGHUP)
        server.wait_until("ready")
        server.wait_for(lambda: versions(server.client) == {"omniglot": [1, 2]})


def test_a_server_ends_while_it_takes_in_a_version(start_server, models):
    with start_server(INNERLOOP_MODELS_DIR=str(models)) as server:
        put(models / "omniglot" / "1", models, "omniglot", 2)
        server.signal(signal.SIGHUP)
        server.wait_for(lambda: server.logged(event="reading the models again"))
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log.read_text()


def test_a_server_ends_with_the_terminal_that_it_runs_in(server_environment, models):
    """The signal is the same; nobody wants the server to live on behind a closed window."""
    server_environment |= {"INNERLOOP_MODELS_DIR": str(models), **SMALL}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        env=server_environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        seen = b""
        while b"the device is warm" not in seen:
            seen += os.read(ours, 65_536)
        process.send_signal(signal.SIGHUP)
        while b"reading the models again" not in seen:
            seen += os.read(ours, 65_536)
        assert process.poll() is None, "it ended though its terminal is open"
        os.close(ours)
        process.send_signal(signal.SIGHUP)  # as the kernel does where the terminal is its own
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
