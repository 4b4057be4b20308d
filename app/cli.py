"""The command line. It is thin: it parses, calls and prints."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table

from app import __version__
from app.errors import InnerloopError, RecipeError, RegistryError
from app.settings import Settings

cli = typer.Typer(
    name="innerloop",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_cli = typer.Typer(help="What the registry holds.", no_args_is_help=True)
database_cli = typer.Typer(help="The database's schema.", no_args_is_help=True)
cli.add_typer(models_cli, name="models")
cli.add_typer(database_cli, name="db")

EVALUATED_WAYS = 5

DeviceOption = Annotated[str, typer.Option(help="auto | cpu | cuda[:n]")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the data set, or its .npz file.")
]


def main() -> None:
    """Runs the command line. An error of ours is one line and exit status 1, Ctrl-C status 130."""
    sys.path.append(str(Path.cwd()))  # a recipe's own network is looked for here too, but last
    try:
        cli(standalone_mode=True)
    except InnerloopError as error:
        _print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_error(message: str) -> None:
    """One line, however many the message has."""
    Console(stderr=True).print(
        f"innerloop: {' '.join(message.split())}",
        style="red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _settings() -> Settings:
    """The settings; where one is not valid, a line for each and exit status 1."""
    try:
        return Settings()
    except ValidationError as error:
        for issue in error.errors():
            _print_error(f"INNERLOOP_{str(issue['loc'][0]).upper()}: {issue['msg']}")
        raise typer.Exit(1) from error


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Personal models from a handful of labelled examples, adapted per request."""


@cli.command()
def serve() -> None:
    """Serve the models over HTTP. Settings come from INNERLOOP_* environment variables."""
    from app.api.serve import run

    raise typer.Exit(run(_settings()))


@cli.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, models/<name>/recipe.toml.")],
    data: DataOption = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of checkpoint and log; runs/<name>-<version>."),
    ] = None,
    device: DeviceOption = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads on the CPU; 0 takes them all.")] = 0,
) -> None:
    """Meta-train θ by a recipe and write the version beside it; started again, it goes on.

    On several GPUs or processes: torchrun --standalone --nproc-per-node N -m -- app train RECIPE
    """
    import torch

    from app.devices import choose_device
    from app.training.distributed import joined_world
    from app.training.job import train as run_job
    from app.training.progress import ConsoleReporter
    from app.training.recipe import load_recipe
    from app.training.run import CHECKPOINT
    from app.training.sources import data_folder

    settings = _settings()
    wanted = load_recipe(recipe)
    home = recipe.resolve().parent
    if wanted.name != home.name:
        raise RecipeError(
            f'{recipe} says name = "{wanted.name}" and lies in the folder {home.name}: a version '
            "is written beside its recipe, so both must be the same"
        )
    if threads:
        torch.set_num_threads(threads)
    with (
        joined_world(choose_device(device)) as (world, own_device),
        ConsoleReporter(silent=not world.leads) as reporter,
    ):
        run_dir = run or Path("runs") / f"{wanted.name}-{wanted.version}"
        try:
            folder = run_job(
                wanted,
                data_dir=data_folder(wanted.data, data, home, settings.data_dir),
                run_dir=run_dir,
                models_dir=home.parent,
                device=own_device,
                reporter=reporter,
                world=world,
            )
        except KeyboardInterrupt:
            if world.leads and (run_dir / CHECKPOINT).exists():
                typer.echo(f"Stopped: the same command goes on from {run_dir}.", err=True)
            raise
    if world.leads:
        typer.echo(f"Wrote {folder}")


@cli.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="models/<name>, or models/<name>/<version>.")],
    ways: Annotated[int, typer.Option(min=1, help="Classes; in regression 1.")] = EVALUATED_WAYS,
    shots: Annotated[int, typer.Option(min=1)] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each class.")] = 15,
    tasks: Annotated[int, typer.Option(min=2)] = 1000,
    steps: Annotated[int, typer.Option(min=0, help="Inner steps; 0 takes the model's own.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 2,
    split: Annotated[str, typer.Option(help="train, validation or test classes.")] = "test",
    data: DataOption = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model on few-shot tasks: accuracy by inner step, and the nearest class mean."""
    from app.devices import choose_device
    from app.registry.card import ErrorFigure
    from app.training.measure import measure_model
    from app.training.progress import ConsoleReporter
    from app.training.recipe import Measure

    settings = _settings()
    with ConsoleReporter(silent=as_json) as reporter:
        report = measure_model(
            model,
            Measure(ways=ways, shots=shots, queries=queries, tasks=tasks),
            pool=split,
            steps=steps,
            seed=seed,
            data_root=data,
            default_root=settings.data_dir,
            device=choose_device(device),
            reporter=reporter,
        )
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json") | {"pool": split}))
        return
    low, high = report.confidence_interval_95
    typer.echo(
        f"{model}: {ways}-way {shots}-shot, {report.queries} queries a class, "
        f"{tasks} tasks of the {split} classes, seed {seed}"
    )
    typer.echo(f"split {report.split}, protocol {report.protocol}")
    if isinstance(report, ErrorFigure):
        name, by_step = "mean squared error", [f"{value:.4f}" for value in report.mse_by_step]
        typer.echo(f"{name} {report.mse:.4f}   95 % interval {low:.4f} to {high:.4f}")
    else:
        name, by_step = "accuracy", [f"{value:.2f}" for value in report.accuracy_by_step]
        typer.echo(f"{name} {report.accuracy:.2f} %   95 % interval {low:.2f} to {high:.2f}")
    table = Table("steps", *map(str, range(len(by_step))))
    table.add_row(name, *by_step)
    Console().print(table)
    if not isinstance(report, ErrorFigure):
        typer.echo(f"nearest class mean of θ's features {report.nearest_class_mean:.2f} %")
        if report.calibration_error is not None and report.outlier_auroc is not None:
            typer.echo(f"expected calibration error {report.calibration_error:.4f}")
            typer.echo(f"queries of other classes told by AUROC {report.outlier_auroc:.4f}")
        else:
            typer.echo(
                "how honest its confidence is was not measured: that takes a calibrated model and "
                f"{2 * ways} classes, half of which are unknown to it"
            )


@models_cli.command("card")
def write_card(
    model: Annotated[Path, typer.Argument(help="models/<name>, or models/<name>/<version>.")],
    data: DataOption = None,
) -> None:
    """Write the model card that a person reads, models/<name>/README.md, and its plots."""
    from app.training.model_card import write_model_card
    from app.training.progress import ConsoleReporter

    settings = _settings()
    with ConsoleReporter() as reporter:
        file = write_model_card(
            model, data_root=data, default_root=settings.data_dir, reporter=reporter
        )
    typer.echo(f"Wrote {file}")


@models_cli.command("new")
def new_model(
    name: Annotated[str, typer.Argument(help="The model's name, of a-z, 0-9, - and _.")],
    data: Annotated[
        Path, typer.Option("--data", help="Folder that holds a folder of pictures for each class.")
    ],
) -> None:
    """Look at a folder of pictures and write a recipe for it, models/<name>/recipe.toml."""
    from app.training.new_recipe import new_recipe

    new = new_recipe(name, data, _settings().models_dir)
    counts = new.found.counts.values()
    pictures = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    colour = "grey" if new.found.grey else "colour"
    ground = ", dark on light" if new.found.dark_on_light else ""
    typer.echo(f"{data}: {len(counts)} classes of {pictures} pictures, {colour}{ground}")
    if new.left_out:
        typer.echo(f"Classes with too few pictures for the largest tasks: {new.left_out}")
    typer.echo(f"Wrote {new.path}: pictures made to fit {new.size} x {new.size}. Next:")
    typer.echo(f"  innerloop train {new.path}")
    ways = "" if new.ways == EVALUATED_WAYS else f" --ways {new.ways}"
    typer.echo(f"  innerloop evaluate {new.path.parent}{ways}")


@models_cli.command("calibrate")
def calibrate_model(
    model: Annotated[Path, typer.Argument(help="models/<name>, or models/<name>/<version>.")],
    data: DataOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Fit a version's confidence on its validation classes anew, and write it into its card.

    `innerloop train` does so by itself: this is for versions that have none. θ stays as it is.
    """
    from app.devices import choose_device
    from app.training.measure import calibrate_version
    from app.training.progress import ConsoleReporter

    settings = _settings()
    with ConsoleReporter() as reporter:
        folder = calibrate_version(
            model,
            data_root=data,
            default_root=settings.data_dir,
            device=choose_device(device),
            reporter=reporter,
        )
    typer.echo(f"Wrote the calibration of {folder}")


@models_cli.command("list")
def list_models() -> None:
    """List the models and verify θ of each version against its card."""
    from app.registry import Registry

    registry = Registry(_settings().models_dir)
    digest = Column("SHA-256 of θ", overflow="fold")
    table = Table("model", "version", "task", "steps", "parameters", digest)
    broken = []
    for name in registry.names():
        for number in registry.versions(name):
            try:
                card = registry.load(name, number).card
            except RegistryError as error:
                broken.append(str(error))
                continue
            table.add_row(
                name,
                str(number),
                card.task,
                str(card.steps),
                str(card.parameters),
                card.theta_sha256,
            )
    if table.row_count or not broken:
        Console().print(table)
    for reason in broken:
        _print_error(reason)
    if broken:
        raise typer.Exit(1)


@database_cli.command("upgrade")
def upgrade() -> None:
    """Bring the database's schema up to date."""
    from app.database import Database

    try:
        database = Database(_settings().database_url)
    except ValueError as error:
        _print_error(f"INNERLOOP_DATABASE_URL: {error}")
        raise typer.Exit(1) from error
    try:
        database.migrate()
    finally:
        database.close()
