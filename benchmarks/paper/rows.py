"""The rows of the table, from `rows.toml`."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

HERE = Path(__file__).parent
MODELS = HERE / "models"


class Row(BaseModel):
    """One row: tasks to measure, the θ to measure, and what was published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    ways: int
    shots: int
    queries: int
    tasks: int
    algorithm: str
    protocol: str
    model: str
    published: float | None = None
    published_mse: tuple[float, float, float] | None = None
    """After 1, 5 and 10 steps."""
    by: str | None = None
    asked: float | None = None
    above: bool = False
    """Whether the row must be above what is asked, or at least that."""
    asked_mse: tuple[float, float, float] | None = None

    @property
    def key(self) -> tuple[str, int, int, str, str]:
        """What tells rows apart."""
        return self.dataset, self.ways, self.shots, self.algorithm, self.protocol

    @property
    def folder(self) -> Path:
        """Where the recipe and the versions of its θ lie."""
        return MODELS / self.model

    @property
    def evaluate_command(self) -> str:
        """What measures the row again."""
        return (
            f"innerloop evaluate benchmarks/paper/models/{self.model} --ways {self.ways} "
            f"--shots {self.shots} --queries {self.queries} --tasks {self.tasks}"
        )


def load_rows() -> list[Row]:
    """All rows, in the table's order."""
    content = tomllib.loads((HERE / "rows.toml").read_text(encoding="utf-8"))
    return [Row.model_validate(row) for row in content["rows"]]
