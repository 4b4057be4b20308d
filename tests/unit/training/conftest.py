from pathlib import Path

import pytest

from app.training import job
from tests.unit.training.helpers import make_pools, recipe, run


@pytest.fixture(autouse=True)
def made_up_pools(monkeypatch) -> None:
    """No test of the job reads Omniglot."""
    monkeypatch.setattr(job, "load_pools", lambda *_: make_pools())


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_pools", lambda *_: make_pools())
        run(recipe(), folder)
    return folder
