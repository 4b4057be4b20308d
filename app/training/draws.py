"""The meta-batches of a run, each drawn by the number of its iteration."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from app.data.pools import Pool
from app.learning.tasks import Examples, Task
from app.training.recipe import PretrainingStage
from app.training.run import TRAIN_STREAM, Job

DRAWERS = 4
"""Threads that draw ahead of a GPU."""


def draw(job: Job, iteration: int) -> Task | Examples:
    """This process's part of the meta-batch of an iteration."""
    stage, _ = job.recipe.stage_at(iteration)
    seed = (job.recipe.seed, TRAIN_STREAM, iteration)
    source, augmentation = job.source.parts["train"], job.recipe.augmentation(stage)
    if isinstance(stage, PretrainingStage):
        assert isinstance(source, Pool)  # by the recipe's rules
        part = job.world.part(stage.pictures)
        return source.sample_pictures(stage.pictures, seed, augmentation, part)
    part = job.world.part(stage.tasks)
    return source.sample(stage.shape(), stage.tasks, seed, augmentation, part)


def drawn(job: Job, first: int) -> Generator[Task | Examples, None, None]:
    """The meta-batches from an iteration on; beside a GPU the next ones are drawn meanwhile."""
    iterations = range(first, job.recipe.iterations)
    if job.device.type == "cpu":
        yield from (draw(job, iteration) for iteration in iterations)
        return
    drawers = ThreadPoolExecutor(DRAWERS)
    try:
        waiting: deque[Future[Task | Examples]] = deque()
        for iteration in iterations:
            waiting.append(drawers.submit(draw, job, iteration))
            if len(waiting) > DRAWERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        drawers.shutdown(cancel_futures=True)
