"""One process of a run on several, which works off several recipes in turn.

`python -m tests.integration.training.several FOLDER...` with torchrun's environment variables. A
FOLDER holds `models/tiny/recipe.toml`; the process of rank R works in FOLDER/R, and an error of the
job is left there as its name and message in `error-R.txt`. The threads that the process still has
in the end are named in `threads-R.txt` of the first FOLDER.
"""

import sys
from pathlib import Path

import pytest
import torch

from app.errors import JobError
from app.training.distributed import joined_world
from app.training.recipe import load_recipe
from tests.unit.training.helpers import feed, run


def work_off(folders: list[Path]) -> None:
    torch.set_num_threads(1)
    feed(pytest.MonkeyPatch())
    with joined_world(torch.device("cpu")) as (world, _):
        for folder in folders:
            recipe, own = load_recipe(folder / "models" / "tiny" / "recipe.toml"), folder / "0"
            if not world.leads:  # it may read the leading process's checkpoint, and write nothing
                own = folder / str(world.rank)
            try:
                run(recipe, own, world=world)
            except JobError as error:
                (folder / f"error-{world.rank}.txt").write_text(f"{type(error).__name__}: {error}")
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    (folders[0] / f"threads-{world.rank}.txt").write_text("\n".join(threads))


if __name__ == "__main__":
    work_off([Path(argument) for argument in sys.argv[1:]])
