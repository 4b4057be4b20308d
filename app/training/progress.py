"""What a person sees of a run: progress bars with loss, accuracy and time left."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from app.training.recipe import Measure


class ConsoleReporter:
    """Shows a run on standard error, so that standard output holds results only."""

    def __init__(self, *, silent: bool = False):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, quiet=silent),
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def loading(self, name: str, done: int, total: int) -> None:
        """Data is being downloaded or decoded."""
        self._show(name, name, done, total)

    def iteration(self, done: int, total: int, loss: float, score: float) -> None:
        """A meta-iteration is over."""
        text = f"meta-training  loss {loss:.3f}  score {score:.3f}"
        self._show("meta-training", text, done, total)

    def validation(self, line: dict[str, object]) -> None:
        """A line was added to the log."""
        if "validation_mse" in line:
            result = f"validation error {line['validation_mse']:.4f}"
        else:
            result = (
                f"validation accuracy {line['validation_accuracy']:.2f} %, "
                f"nearest class mean {line['validation_nearest_class_mean']:.2f} %"
            )
        self._progress.console.print(
            f"iteration {line['iteration']}: loss {line['loss']:.4f}, {result}", soft_wrap=True
        )

    def calibrating(self, done: int, total: int) -> None:
        """Confidence is being fitted."""
        self._show("calibrating", "calibrating", done, total)

    def measuring(self, measure: Measure, done: int) -> None:
        """Accuracy is being measured."""
        name = f"{measure.ways}-way {measure.shots}-shot"
        self._show(name, name, done, measure.tasks)

    def warning(self, text: str) -> None:
        """Something that the user should know of."""
        self._progress.console.print(f"warning: {text}", soft_wrap=True, markup=False)

    def _show(self, key: str, text: str, done: int, total: int) -> None:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(text)
        self._progress.update(
            self._bars[key], description=text, completed=done, total=total or None
        )
