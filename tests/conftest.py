"""What tests of every kind share."""

import os
from pathlib import Path

import pytest
import torch

ARCHIVES = ("images_background.zip", "images_evaluation.zip")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """A run is the same to the bit only with the same number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def omniglot_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable folder with the two archives of the real Omniglot, and nothing else.

    They are looked for in INNERLOOP_TEST_OMNIGLOT, else in the checkout's `data/omniglot`.
    """
    given = os.environ.get("INNERLOOP_TEST_OMNIGLOT")
    source = Path(given) if given else Path(__file__).parents[1] / "data" / "omniglot"
    missing = [name for name in ARCHIVES if not (source / name).is_file()]
    if missing:
        pytest.skip(f"{source} has no {' and no '.join(missing)}: set INNERLOOP_TEST_OMNIGLOT")
    folder = tmp_path_factory.mktemp("omniglot")
    for name in ARCHIVES:
        (folder / name).symlink_to((source / name).resolve())
    return folder
