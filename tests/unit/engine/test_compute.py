"""Which shapes the device meets, and that none is new once it is warm."""

from collections.abc import Callable

import numpy as np
import pytest
from torch.utils._pytree import tree_leaves

from app.engine import Engine, compute
from app.engine.compute import _groups, padded
from tests.unit.engine.helpers import (
    DEEP,
    SECONDS,
    Device,
    Problem,
    problem,
    start,
    submit,
)

Shapes = set[tuple[tuple[int, ...], ...]]


@pytest.mark.parametrize(
    ("count", "size"), [(1, 8), (2, 8), (8, 8), (9, 16), (16, 16), (17, 32), (2048, 2048)]
)
def test_padding_is_to_the_next_power_of_two(count, size):
    assert padded(count) == size


@pytest.mark.parametrize("most", [None, 1, 4])
def test_groups_are_powers_of_two_and_lose_nothing(most):
    for count in range(40):
        groups = [list(group) for group in _groups(range(count), most)]
        assert [item for group in groups for item in group] == list(range(count))
        assert all(len(group) & (len(group) - 1) == 0 for group in groups)
        assert all(len(group) <= (most or count) for group in groups)


@pytest.fixture
def seen(monkeypatch) -> Shapes:
    """The shapes of all tensors of every batched computation."""
    shapes: Shapes = set()
    vmap = compute.vmap

    def recording(function: Callable) -> Callable:
        batched = vmap(function)

        def call(*arguments):
            shapes.add(tuple(tuple(leaf.shape) for leaf in tree_leaves(arguments)))
            return batched(*arguments)

        return call

    monkeypatch.setattr(compute, "vmap", recording)
    return shapes


class Load:
    """Requests within the limits, in batches that the test composes."""

    def __init__(self, engine: Engine, device: Device, most_ways: int):
        self.engine, self.device, self.most_ways = engine, device, most_ways
        self.rng = np.random.default_rng(0)
        self.keys: dict[str, Problem] = {}

    def adapt(self, count: int, size: int, queries: int, steps: int) -> None:
        """`count` adaptations of up to `size` examples, waiting together."""
        works = []
        for _ in range(count):
            ways = int(self.rng.integers(2, 1 + min(size, self.most_ways)))
            shots = self.rng.multinomial(size - ways, np.ones(ways) / ways) + 1
            seed = int(self.rng.integers(1 << 30))
            works.append(problem(seed, shots.tolist(), queries, steps, DEEP))
        keys = [f"load:{len(self.keys) + number}" for number in range(count)]
        self.keys |= dict(zip(keys, works, strict=True))
        self._together(
            lambda: [submit(self.engine, *pair) for pair in zip(keys, works, strict=True)]
        )

    def predict(self, keys: list[str], queries: int) -> None:
        """One prediction for each of some sessions, waiting together."""
        query = np.zeros((queries, 5), np.float32)
        self._together(lambda: [self.engine.predict(DEEP, key, query) for key in keys])

    def _together(self, send: Callable[[], list]) -> None:
        held = self.device.hold(self.engine)
        futures = send()
        self.device.gate.set()
        for future in [held, *futures]:
            future.result(SECONDS)


@pytest.mark.parametrize(("batch_limit", "max_classes"), [(1, 12), (3, 12), (16, 64)])
def test_after_warming_up_no_request_within_the_limits_has_a_new_shape(
    build, device, seen, batch_limit, max_classes
):
    limits = {"max_support": 64, "max_classes": max_classes, "batch_limit": batch_limit}
    engine = start(build(**limits, max_query=300))
    warm = set(seen)
    load = Load(engine, device, most_ways=max_classes)
    for size in (2, 8, 9, 64):
        for count in (1, batch_limit, int(load.rng.integers(1, 1 + batch_limit))):
            queries, steps = int(load.rng.integers(0, 80)), int(load.rng.integers(1, 6))
            load.adapt(count, size, queries, steps)
    keys = list(load.keys)
    for _ in range(6):
        some = load.rng.choice(keys, batch_limit).tolist()
        load.predict(some, int(load.rng.integers(1, 70)))
    for queries in (1, 4, 5, 16, 17, 64):
        for size in (8, 64):  # the smallest and the largest head
            alike = [key for key, work in load.keys.items() if len(work.support.labels) == size]
            load.predict((alike * batch_limit)[:batch_limit], queries)
    load.predict(keys[:1], 300)
    assert seen - warm == set()


def test_warming_up_runs_each_shape_and_no_more(build, seen):
    start(build(max_support=64, max_classes=16, batch_limit=16))
    adaptations = 5 + 5 + 4 + 3  # groups of 1 to 16 sets of 8, 16, 32 and 64 examples
    answers = 5 + 5 + 3  # queries in chunks of 4, 16 and 64
    any_number, fixed = 2, 1  # models: heads of 8 and of 16 rows, or of three
    heads = 2 * any_number + fixed
    assert len(seen) == (any_number + fixed) * adaptations + heads * answers


def test_warming_up_takes_the_steps_that_sessions_take(build, monkeypatch):
    taken: dict[int, int] = {}
    adapt = compute.adapt

    def recording(learner, theta, support, classes, alpha, steps):
        size = support.labels.shape[-1]
        taken[size] = max(steps, taken.get(size, 0))
        return adapt(learner, theta, support, classes, alpha, steps)

    monkeypatch.setattr(compute, "adapt", recording)
    start(build(max_support=512, max_classes=4, batch_limit=1))
    assert taken == {8: 3, 16: 3, 32: 3, 64: 3, 128: 2, 256: 2, 512: 1}
