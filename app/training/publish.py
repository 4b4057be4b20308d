"""From the end of a run to a version in the registry: its confidence, its figures, its card.

What was measured is kept in the run's folder, one figure after the other, so that a run that is
stopped while it measures goes on with the next.
"""

import hashlib
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch
from pydantic import BaseModel, ValidationError

from app.errors import CheckpointError
from app.learning.heads import LinearHead
from app.learning.networks import network_arguments
from app.registry.card import AccuracyFigure, Calibration, Card, ErrorFigure
from app.registry.registry import encode_theta
from app.training.figures import calibrated, measure_figure
from app.training.recipe import Measure
from app.training.run import MEASURED, TEST_STREAM, Job, write_run_file
from app.training.state import State


class _Measured(BaseModel):
    """What has been measured of a θ: how confident it may be, and figures of the recipe."""

    of: str
    """SHA-256 of the run's identity, θ and α: what was measured of others does not count."""
    calibration: Calibration | None
    figures: tuple[tuple[Measure, AccuracyFigure | ErrorFigure], ...] = ()


def publish(job: Job, state: State) -> None:
    """Calibrates θ on the validation classes, measures it on the test classes, writes both."""
    recipe = job.recipe
    job.learner.to_answer(job.device)
    theta = {name: value.detach() for name, value in state.theta.items()}
    alpha = {name: value.detach() for name, value in state.alpha.items()}
    content = encode_theta(theta, alpha)
    of = hashlib.sha256(job.identity.encode() + content).hexdigest()
    measured = _kept(job, of)
    if measured is None:
        calibration = calibrated(job.learner, theta, alpha, job.source, recipe, job.reporter)
        measured = _keep(job, _Measured(of=of, calibration=calibration))
    for wanted in recipe.figures:
        if wanted in dict(measured.figures):
            continue
        figure = measure_figure(
            job.learner,
            theta,
            alpha,
            job.source.parts["test"],
            wanted,
            split=recipe.data.split,
            steps=recipe.inner.steps,
            seed=TEST_STREAM,
            calibration=measured.calibration,
            reporter=job.reporter,
        )
        figures = (*measured.figures, (wanted, figure))
        measured = _keep(job, measured.model_copy(update={"figures": figures}))
    stages = recipe.task_stages
    judged_on = recipe.validation  # pre-training draws no tasks
    card = Card(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        intended_use=recipe.intended_use,
        out_of_scope=recipe.out_of_scope,
        task="regression" if isinstance(job.learner.head, LinearHead) else "classification",
        input=job.source.input,
        network=network_arguments(**recipe.network.model_dump()),
        head=recipe.head,
        inner_temperature=recipe.inner.temperature,
        steps=recipe.inner.steps,
        alpha={
            name: tuple(value.flatten(1).mean(1).tolist() if value.ndim > 1 else value.tolist())
            for name, value in alpha.items()
        },
        trained_ways=_span([stage.ways for stage in stages] or [(judged_on.ways,) * 2]),
        trained_shots=_span([stage.shots for stage in stages] or [(judged_on.shots,) * 2]),
        theta_sha256=hashlib.sha256(content).hexdigest(),
        theta_bytes=len(content),
        parameters=sum(value.numel() for value in theta.values()),
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        recipe=recipe.as_dict(),
        seed=recipe.seed,
        data_digest=job.source.digest,
        iterations=state.iteration,
        wall_seconds=round(state.wall_seconds, 1),
        peak_memory_bytes=state.peak_memory_bytes,
        made_with={
            "innerloop": version("innerloop"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(job.device),
            "threads": str(torch.get_num_threads()),
            "processes": str(job.world.size),
        },
        calibration=measured.calibration,
        figures=tuple(dict(measured.figures)[wanted] for wanted in recipe.figures),
    )
    job.registry.save(card, content)


def _kept(job: Job, of: str) -> _Measured | None:
    """What the run's folder holds of this θ, if anything."""
    path = job.run_dir / MEASURED
    try:
        measured = _Measured.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:  # before anything is measured that could not be kept there
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): delete it to measure anew"
        ) from error
    return measured if measured.of == of else None


def _keep(job: Job, measured: _Measured) -> _Measured:
    """Writes what has been measured by now, and returns it."""
    write_run_file(job.run_dir / MEASURED, measured.model_dump_json(indent=2).encode())
    return measured


def _span(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)
