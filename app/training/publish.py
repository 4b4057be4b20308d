"""From the end of a run to a version in the registry: its confidence, its figures, its card."""

import hashlib
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from app.learning.heads import LinearHead
from app.learning.networks import network_arguments
from app.registry.card import Card
from app.registry.registry import encode_theta
from app.training.figures import calibrated, measure_figure
from app.training.run import TEST_STREAM, Job
from app.training.state import State


def publish(job: Job, state: State) -> None:
    """Calibrates θ on the validation classes, measures it on the test classes, writes both."""
    recipe = job.recipe
    job.learner.to_answer(job.device)
    theta = {name: value.detach() for name, value in state.theta.items()}
    alpha = {name: value.detach() for name, value in state.alpha.items()}
    calibration = calibrated(job.learner, theta, alpha, job.source, recipe, job.reporter)
    figures = [
        measure_figure(
            job.learner,
            theta,
            alpha,
            job.source.parts["test"],
            wanted,
            split=recipe.data.split,
            steps=recipe.inner.steps,
            seed=TEST_STREAM,
            calibration=calibration,
            reporter=job.reporter,
        )
        for wanted in recipe.figures
    ]
    stages = recipe.task_stages
    judged_on = recipe.validation  # pre-training draws no tasks
    content = encode_theta(theta, alpha)
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
        calibration=calibration,
        figures=tuple(figures),
    )
    job.registry.save(card, content)


def _span(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)
