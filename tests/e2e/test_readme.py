"""The README's first session, run as it stands there: same commands, same output."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PORT = "127.0.0.1:8000"


def shown(name: str) -> str:
    """The block after a marker."""
    match = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert match, f"the README shows no {name}"
    return match[1]


def command(beginning: str) -> list[str]:
    """The words of the README's command that begins so."""
    line = next(line for line in README.splitlines() if line.startswith(beginning))
    return re.sub(r"'([^']*)'", lambda quoted: quoted[1].replace(" ", "\0"), line).split(" ")


def run(words: list[str], url: str, session: str = "") -> str:
    words = [word.replace("\0", " ").replace("http://" + PORT, url) for word in words]
    words = [word.replace("SESSION_ID", session) for word in words]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def same(expected, actual) -> bool:
    """Whether two JSON values are the same, but for numbers that differ by rounding."""
    if isinstance(expected, dict):
        return expected.keys() == actual.keys() and all(
            same(value, actual[key])
            for key, value in expected.items()
            if key not in ("id", "session", "created_at")
        )
    if isinstance(expected, list):
        pairs = zip(expected, actual, strict=True)
        return len(expected) == len(actual) and all(same(one, other) for one, other in pairs)
    if isinstance(expected, float):
        return actual == pytest.approx(expected, abs=1e-5)
    return expected == actual


def test_the_commands_of_the_first_session_print_what_the_readme_shows(server):
    session = json.loads(run(command("curl -s http://127.0.0.1:8000/v1/sessions -H"), server.url))
    assert same(json.loads(shown("curl-output")), session)

    words = command("curl -s http://127.0.0.1:8000/v1/sessions/SESSION_ID")
    answer = json.loads(run(words, server.url, session["id"]))
    assert same(json.loads(shown("query-output")), answer)


def test_the_client_prints_what_the_readme_shows(server):
    printed = run([sys.executable, "examples/client.py", server.url], server.url)

    def words(text: str) -> list[float | str]:
        return [float(w) if re.fullmatch(r"[\d.]+", w) else w for w in text.split()]

    expected = words(shown("client-output"))
    assert words(printed) == [
        pytest.approx(word, abs=2e-3) if isinstance(word, float) else word for word in expected
    ]


def test_the_tensors_of_the_readme_are_answered(server):
    names: dict = {}
    exec(shown("tensors").replace("http://" + PORT, server.url), names)
    np.testing.assert_allclose(names["probabilities"].sum(axis=1), [1, 1], rtol=1e-6)
    assert names["probabilities"].argmax(axis=1).tolist() == [0, 1]
