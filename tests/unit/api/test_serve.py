import signal
import socket

import pytest

from app.api import serve
from app.settings import Settings

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _process_state(monkeypatch):
    """Leave the tests' own logging and signals alone."""
    monkeypatch.setattr(serve, "configure", lambda _: None)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def settings(settings) -> Settings:
    return settings.model_copy(update={"port": 0})


@pytest.fixture
def build(monkeypatch, resources):
    monkeypatch.setattr(serve.Resources, "build", lambda _: resources)


def failure(settings, capsys) -> str:
    """The one line that `run` leaves on standard error where it cannot start."""
    assert serve.run(settings) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("innerloop: ")
    return line


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_taken_port_is_named_in_one_line(build, settings, capsys, host):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = failure(settings.model_copy(update={"host": host, "port": port}), capsys)
    assert f"port {port} of {host} is taken" in line
    assert "INNERLOOP_PORT" in line


def test_an_unknown_host_is_named_in_one_line(build, settings, capsys):
    line = failure(settings.model_copy(update={"host": "no such host"}), capsys)
    assert "no such host" in line
    assert "INNERLOOP_HOST" in line


def test_an_address_of_another_machine_is_named_in_one_line(build, settings, capsys):
    assert "192.0.2.1" in failure(settings.model_copy(update={"host": "192.0.2.1"}), capsys)


def test_a_registry_without_models_is_named_in_one_line(settings, capsys):
    line = failure(settings, capsys)
    assert str(settings.models_dir) in line
    assert "innerloop train" in line


def test_a_wrong_database_url_is_named_in_one_line_without_its_secrets(settings, capsys):
    url = "mysql://user:secret@host/name"
    line = failure(settings.model_copy(update={"database_url": url}), capsys)
    assert "INNERLOOP_DATABASE_URL" in line
    assert "secret" not in line
