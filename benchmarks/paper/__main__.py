"""Reproduces the published table: `python -m benchmarks.paper train | evaluate | report`."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.devices import choose_device
from app.registry.card import AccuracyFigure, ErrorFigure
from app.settings import Settings
from benchmarks.paper.report import markdown
from benchmarks.paper.results import LOG, measure_figure, read_results, result_of, write_results
from benchmarks.paper.rows import HERE, MODELS, load_rows

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Names = Annotated[list[str] | None, typer.Argument(help="Models; none: all of them.")]
RUNS = Path("runs") / "paper"


@cli.command()
def train(
    names: Names = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda[:n]")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads on the CPU; 0 takes all.")] = 0,
) -> None:
    """Make the θ that are missing, one after the other; a run that was interrupted goes on."""
    for name in names or dict.fromkeys(row.model for row in load_rows()):
        version, run = MODELS / name / "1", RUNS / name
        if (version / "card.json").exists():
            typer.echo(f"{name}: there already")
            continue
        typer.echo(f"{name}: innerloop train benchmarks/paper/models/{name}/recipe.toml")
        command = [sys.executable, "-m", "app", "train", str(MODELS / name / "recipe.toml")]
        options = ["--run", str(run), "--device", device, "--threads", str(threads)]
        subprocess.run([*command, *options], check=True)  # noqa: S603 - no shell, our own program
        shutil.copyfile(run / "log.jsonl", version / LOG)


@cli.command()
def evaluate(
    names: Names = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda[:n]")] = "auto",
) -> None:
    """Measure the rows of the models that are there, and write results.json."""
    rows, results = load_rows(), read_results()
    figures: dict[object, AccuracyFigure | ErrorFigure] = {}
    for row in rows:
        if (names and row.model not in names) or not (row.folder / "1" / "card.json").exists():
            continue
        tasks = row.model, row.ways, row.shots, row.queries, row.tasks
        if tasks not in figures:  # rows of φ and of the nearest class mean are of the same tasks
            figures[tasks] = measure_figure(row, Settings().data_dir, choose_device(device))
        results[row.key] = result_of(row, figures[tasks])
        write_results(rows, results)
        shown = results[row.key].get("accuracy") or results[row.key].get("mse_by_step")
        typer.echo(f"{' '.join(map(str, row.key))}: {shown}")


@cli.command()
def report() -> None:
    """Write RESULTS.md and its plots from results.json and the logs of the runs."""
    from benchmarks.paper import plots  # needs the extra `bench`

    rows, results = load_rows(), read_results()
    plots.draw_learning_curves(rows)
    plots.draw_accuracy_by_step(rows, results)
    plots.draw_sinusoids()
    (HERE / "RESULTS.md").write_text(markdown(rows, results), encoding="utf-8")


if __name__ == "__main__":
    cli()
