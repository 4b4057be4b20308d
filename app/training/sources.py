"""The data of a recipe: where it lies, and how it is loaded."""

from collections.abc import Callable
from pathlib import Path

from app.data.arrays import load_arrays
from app.data.distributions import Source, load_source
from app.data.folder import load_folder
from app.data.pools import data_digest
from app.errors import RecipeError
from app.training.data_parts import ArraysPart, DataPart, FolderPart

AnyPart = DataPart | FolderPart | ArraysPart


def data_folder(data: AnyPart, given: Path | None, recipe_folder: Path, data_dir: Path) -> Path:
    """The folder of a recipe's data, or their file.

    Args:
        data: the recipe's part.
        given: what goes before everything else, by `--data`.
        recipe_folder: the recipe's own folder.
        data_dir: where distributions that are known by their name lie.

    Raises:
        RecipeError: neither the recipe nor anyone else says where they are.
    """
    if given is not None:
        return given
    if isinstance(data, DataPart):
        return data_dir / data.distribution
    name, place, what = (
        ("file", data.file, "arrays")
        if isinstance(data, ArraysPart)
        else ("folder", data.folder, "pictures")
    )
    if place is None:
        raise RecipeError(
            f"The recipe does not say where its {what} are: set `{name}` in [data], or give --data"
        )
    return recipe_folder / place


def load_data(data: AnyPart, folder: Path, progress: Callable[[str, int, int], None]) -> Source:
    """Loads a recipe's data from a folder, or from their file.

    Raises:
        DataError: a file is missing or broken.
    """
    if isinstance(data, DataPart):
        return load_source(data.distribution, data.split, folder, progress)
    if isinstance(data, ArraysPart):
        spec, arrays = load_arrays(
            folder, data.split, data.split_seed, standardise=data.standardise
        )
        return Source(spec, arrays, data_digest(arrays))
    pools = load_folder(folder, data.input, data.split, data.split_seed, progress)
    return Source(data.input, pools, data_digest(pools))
