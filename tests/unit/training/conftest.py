from pathlib import Path

import pytest

from tests.unit.training.helpers import feed, recipe, run


@pytest.fixture(autouse=True)
def made_up_pools(monkeypatch) -> None:
    """No test of the job reads Omniglot."""
    feed(monkeypatch)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        feed(patch)
        run(recipe(), folder)
    return folder
