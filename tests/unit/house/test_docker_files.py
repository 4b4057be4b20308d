"""The image and the stack as far as they can be judged without a Docker engine."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from app.settings import Settings

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
PREFIX = "INNERLOOP_"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|DATABASE_URL|_KEY\b")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined and comments dropped."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    split = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(keyword.upper(), rest) for keyword, rest in split]


def final_stage() -> list[tuple[str, str]]:
    """What the image is made by: everything after the last FROM."""
    found = instructions()
    last = max(i for i, (keyword, _) in enumerate(found) if keyword == "FROM")
    return found[last + 1 :]


def the_only(keyword: str) -> str:
    (rest,) = [rest for name, rest in final_stage() if name == keyword]
    return rest


def image_environment() -> dict[str, str]:
    pairs = " ".join(rest for keyword, rest in final_stage() if keyword == "ENV").split()
    return dict(pair.split("=", 1) for pair in pairs)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    return loaded


def our_services() -> dict[str, Any]:
    return {name: s for name, s in compose()["services"].items() if name != "database"}


def lint(*command: str) -> None:
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    lint("hadolint", "--no-color", "Dockerfile")


def test_the_compose_file_keeps_to_the_compose_specification() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_image_runs_as_a_fixed_user_that_is_not_root() -> None:
    uid, gid = the_only("USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_both_stages_start_from_the_same_base_so_that_the_environment_finds_its_interpreter() -> (
    None
):
    bases = [rest.split()[0] for keyword, rest in instructions() if keyword == "FROM"]
    assert bases == ["${BASE_IMAGE}", "${BASE_IMAGE}"]


def test_nothing_secret_stands_in_the_image() -> None:
    kept = [rest for keyword, rest in final_stage() if keyword in {"ENV", "ARG", "LABEL"}]
    assert [rest for rest in kept if SECRET.search(rest)] == []
    assert [
        rest for keyword, rest in instructions() if keyword == "ARG" and SECRET.search(rest)
    ] == []


def test_the_image_starts_the_console_script_without_a_shell_between_it_and_sigterm() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (program,) = json.loads(the_only("ENTRYPOINT"))
    assert program in scripts
    assert json.loads(the_only("CMD")) == ["serve"]
    assert the_only("STOPSIGNAL") == "SIGTERM"


def test_the_image_listens_on_every_address_and_keeps_its_data_in_its_volume() -> None:
    environment = image_environment()
    assert environment["INNERLOOP_HOST"] == "0.0.0.0"
    assert environment["INNERLOOP_DATA_DIR"] == the_only("VOLUME")
    assert the_only("EXPOSE") == str(Settings.model_fields["port"].default)


def test_only_what_the_dockerfile_copies_leaves_the_checkout() -> None:
    copies = [rest.split() for keyword, rest in instructions() if keyword == "COPY"]
    sources = {s for words in copies if not words[0].startswith("--") for s in words[:-1]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    assert {p[1:] for p in patterns if p.startswith("!")} == sources


def test_every_setting_that_the_files_name_exists() -> None:
    named = set(image_environment()) | {
        key for service in our_services().values() for key in service["environment"]
    }
    named |= set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    ours = {name.removeprefix(PREFIX).lower() for name in named if name.startswith(PREFIX)}
    assert "data_dir" in ours
    assert ours <= set(Settings.model_fields)


@contextmanager
def server_that_answers(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server on a free port; yields the port and the list of the paths it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port, paths
        finally:
            server.shutdown()
            thread.join()


def run_health_check(port: int) -> int:
    """The exit status of the image's health check, with a proxy about that leads nowhere."""
    command = the_only("HEALTHCHECK").split("CMD ", 1)[1]
    _, *arguments = json.loads(command)
    environment = os.environ | {"INNERLOOP_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, timeout=30
    ).returncode


def test_the_health_check_passes_where_the_service_is_ready() -> None:
    with server_that_answers(200) as (port, paths):
        assert run_health_check(port) == 0
    assert paths == ["/health/ready"]


def test_the_health_check_fails_where_the_service_is_not_ready() -> None:
    with server_that_answers(503) as (port, _):
        assert run_health_check(port) == 1


def test_the_health_check_fails_where_nothing_listens() -> None:
    with server_that_answers(200) as (port, _):
        pass
    assert run_health_check(port) == 1


@pytest.mark.parametrize("name", ["innerloop", "innerloop-gpu", "migrate", "train"])
def test_a_container_of_ours_can_change_neither_its_image_nor_its_privileges(name: str) -> None:
    service = our_services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


def test_the_service_may_write_to_its_data_folder_under_the_read_only_root() -> None:
    uid, gid = the_only("USER").split(":")
    for name in ("innerloop", "innerloop-gpu", "migrate"):
        assert f"/data:uid={uid},gid={gid}" in our_services()[name]["tmpfs"]


@pytest.mark.parametrize("name", ["innerloop", "innerloop-gpu"])
def test_the_service_starts_after_the_migrations_and_stops_after_its_drain(name: str) -> None:
    service = our_services()[name]
    conditions = {other: needs["condition"] for other, needs in service["depends_on"].items()}
    assert conditions == {
        "database": "service_healthy",
        "migrate": "service_completed_successfully",
    }
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_seconds"].default


def test_only_the_plain_service_runs_unless_a_variant_is_asked_for() -> None:
    services = compose()["services"]
    assert {name for name, s in services.items() if not s.get("profiles")} == {
        "innerloop",
        "migrate",
        "database",
    }
    gpu = services["innerloop-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert gpu["environment"]["INNERLOOP_DEVICE"] == "cuda"
    assert gpu["ports"] == services["innerloop"]["ports"]


def test_the_database_has_no_port_outside_and_no_default_password() -> None:
    database = compose()["services"]["database"]
    assert "ports" not in database
    assert database["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_the_published_port_is_on_the_loopback_interface_by_default() -> None:
    (port,) = our_services()["innerloop"]["ports"]
    assert port.startswith("${INNERLOOP_HOST:-127.0.0.1}:")
