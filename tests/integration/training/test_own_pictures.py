"""From a folder of pictures to a model that is served, by the commands that a person types."""

import sys
from pathlib import Path

import numpy as np
import pytest

from app import cli
from app.data.folder import read_picture
from app.engine import Engine, ModelKey, SupportSet
from app.registry import Registry
from app.settings import Settings
from tests.unit.engine.helpers import wait_until
from tests.unit.training.pictures import make_folder

SECONDS = 60


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty working folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["innerloop", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert not end.value.code, err
        return out

    return run


def shorten(path: Path) -> None:
    """A recipe as it was written, but of few iterations and small measures."""
    text = path.read_text()
    for old, new in [
        ("iterations = 4000", "iterations = 12"),
        ("iterations = 500", "iterations = 2"),
        ("filters = 64", "filters = 16"),
        ("tasks = 100", "tasks = 8"),
        ("tasks = 600", "tasks = 8"),
        ("every = 250", "every = 7"),
    ]:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize("colour", [False, True])
def test_own_pictures_become_a_model_that_tells_them_apart(run, colour):
    make_folder(Path("pictures"), [9, 5, *[7] * 10], colour=colour)
    out = run("models", "new", "own", "--data", "pictures")
    train, evaluate = (line.split()[1:] for line in out.splitlines()[-2:])
    shorten(Path("models/own/recipe.toml"))
    assert "Wrote" in run(*train, "--threads", "1")
    assert "accuracy" in run(*evaluate, "--tasks", "4")
    moved = Path("pictures").rename("moved")
    assert "accuracy" in run(*evaluate, "--tasks", "4", "--data", "moved")

    card = Registry(Path("models")).latest("own")
    assert card.input.shape == ((3, 32, 32) if colour else (1, 28, 28))
    assert card.figures[0].accuracy > 60
    settings = Settings(device="cpu", max_support=8, max_classes=8)
    engine = Engine(Registry(Path("models")), settings)
    engine.start()
    try:
        wait_until(lambda: engine.ready)
        classes = sorted(moved.glob("class-*"))[:3]
        pictures = np.stack(
            [read_picture(c / f"{n}.png", card.input) for n in range(2) for c in classes]
        )
        inputs = (pictures / 255).astype(np.float32)
        support = SupportSet(inputs[:3], np.arange(3), 3)
        adapted = engine.adapt(ModelKey("own", 1), "key", support, card.steps, inputs[3:])
        answers = adapted.result(SECONDS).answers
        assert answers.probabilities.argmax(-1).tolist() == [0, 1, 2]
    finally:
        engine.stop(SECONDS)
