"""Which shapes the device meets, and that none is new once it is warm."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from app.engine import Engine, compute
from app.engine.alone import Alone
from app.engine.shapes import ON_CPU, ON_GPU, groups, padded, padded_rows, shared_rows
from tests.unit.engine.helpers import (
    CONV,
    DEEP,
    SECONDS,
    SHARED,
    Device,
    Problem,
    problem,
    start,
    submit,
)

Shapes = set[tuple[tuple[int, ...], ...]]


SHARINGS = pytest.mark.parametrize("sharing", [ON_CPU, ON_GPU, SHARED])


def test_padding_is_to_powers_of_two_and_to_half_more():
    wanted = {1: 4, 4: 4, 5: 6, 6: 6, 7: 8, 8: 8, 9: 12, 13: 16, 96: 96, 100: 128, 1024: 1024}
    assert {count: padded(count) for count in wanted} == wanted


def test_rows_of_an_answer_are_padded_to_few_numbers():
    assert [shared_rows(rows) for rows in (5, 8, 16, 32, 128)] == [
        [5],
        [8],
        [8, 16],
        [8, 32],
        [8, 32, 128],
    ]


def test_rows_are_padded_to_a_power_of_two():
    assert [padded_rows(ways) for ways in (2, 8, 9, 16, 100)] == [8, 8, 16, 16, 128]


@SHARINGS
@pytest.mark.parametrize("size", [4, 5, 8, 16, 20, 64])
@pytest.mark.parametrize("most", [1, 4, 16])
def test_groups_lose_nothing_and_are_as_many_as_one_computation_takes(sharing, size, most):
    for counts in (sharing.counts(size, most), sharing.query_counts(size, most)):
        for count in range(40):
            found = [list(group) for group in groups(range(count), counts)]
            assert [item for group in found for item in group] == list(range(count))
            lengths = [len(group) for group in found]
            assert set(lengths) <= {1, *counts}
            assert lengths == sorted(lengths, reverse=True)
            assert lengths.count(1) < 2 or max(counts, default=1) == 1


@SHARINGS
def test_what_shares_a_computation_is_bounded(sharing):
    for size in sharing.sizes(3000):
        assert size <= sharing.largest
        for count in sharing.counts(size, 16):
            assert sharing.least <= count <= 16
            assert count * size <= sharing.together
    for size in sharing.query_sizes:
        for count in sharing.query_counts(size, 16):
            assert sharing.least <= count <= 16
            assert count * size <= sharing.queries_together
    assert sharing.sizes(5) == ([4, 6] if sharing.largest else [])
    assert not sharing.counts(padded(sharing.largest + 1), 16)


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
def test_after_warming_up_no_tasks_that_share_a_computation_have_a_new_shape(
    build, device, seen, batch_limit, max_classes
):
    limits = {"max_support": 64, "max_classes": max_classes, "batch_limit": batch_limit}
    engine = start(build(**limits, max_query=300))
    warm = set(seen)
    load = Load(engine, device, most_ways=max_classes)
    for size in (2, 5, 8, 9, 64):
        for count in (1, batch_limit, int(load.rng.integers(1, 1 + batch_limit))):
            queries, steps = int(load.rng.integers(0, 80)), int(load.rng.integers(1, 6))
            load.adapt(count, size, queries, steps)
    keys = list(load.keys)
    for _ in range(6):
        some = load.rng.choice(keys, batch_limit).tolist()
        load.predict(some, int(load.rng.integers(1, 70)))
    for queries in (1, 4, 5, 16, 17, 64, 300):
        for size in (8, 64):  # the smallest and the largest head
            alike = [key for key, work in load.keys.items() if len(work.support.labels) == size]
            load.predict((alike * batch_limit)[:batch_limit], queries)
    load.predict(keys[:1], 300)
    assert seen - warm == set()
    assert bool(warm) == (batch_limit > 1)


def test_warming_up_runs_each_shape_and_no_more(build, seen):
    start(build(max_support=64, max_classes=16, batch_limit=16))
    adaptations = 4 + 3 + 3 + 2 + 2  # groups of 2 to 16 sets of 4, 6, 8, 12 and 16
    answers = 4 + 4 + 2 + 1  # 2 to 16 requests of 1, 4, 16 and 40 queries
    models, rows = 3, 2 + 2 + 1  # of a head 8 or 16, of the fixed one always three
    assert len(seen) == models * adaptations + rows * answers


def test_a_task_alone_is_computed_as_it_is(running, seen):
    engine, work = running(max_support=64), problem(1, [3, 4], queries=75)
    warm = set(seen)
    submit(engine, "alone", work).result(SECONDS)
    engine.predict(CONV, "alone", work.query[:3]).result(SECONDS)
    assert seen == warm, "nothing to share a computation with"


def test_small_tasks_share_a_computation_and_large_ones_do_not(running, device, monkeypatch):
    alone, together = [], []
    one, several = Alone.adapt, compute.adapted_contents

    def adapt_one(self, support, steps, parts):
        alone.append(len(support.labels))
        return one(self, support, steps, parts)

    def adapt_several(learner, theta, support, *arguments):
        together.append(support.labels.shape[-1])
        return several(learner, theta, support, *arguments)

    engine = running(max_support=64, batch_limit=16)
    monkeypatch.setattr(Alone, "adapt", adapt_one)
    monkeypatch.setattr(compute, "adapted_contents", adapt_several)
    load = Load(engine, device, most_ways=8)
    load.adapt(9, 5, 2, 3)
    load.adapt(4, 40, 2, 3)
    # The one that held the device both times, the ninth, and the large ones.
    assert alone == [2, 5, 2, 40, 40, 40, 40]
    assert together == [6], "eight as one, each padded to six examples"


@pytest.mark.parametrize("sharing", [ON_CPU])
def test_each_thread_computes_forty_queries_at_once_in_parts_of_one_size(running, monkeypatch):
    computer, sizes = running()._computers[CONV][0], []
    adapt, answer = Alone.adapt, Alone.answer

    def adapting(self, support, steps, parts):
        sizes.append([len(part) for part in parts])
        return adapt(self, support, steps, parts)

    def answering(self, phi, parts):
        sizes.append([len(part) for part in parts])
        return answer(self, phi, parts)

    monkeypatch.setattr(Alone, "adapt", adapting)
    monkeypatch.setattr(Alone, "answer", answering)
    before = torch.get_num_threads()
    try:
        for threads, queries in ((1, 75), (2, 75), (1, 81), (2, 81), (1, 0)):
            torch.set_num_threads(threads)
            work = problem(1, [1, 1], queries=queries)
            [(phi, _, _)] = computer.adapt([work.support], 3, [work.query])
            computer.predict([(phi, work.query)])
    finally:
        torch.set_num_threads(before)
    assert sizes[::2] == sizes[1::2] == [[38, 37], [75], [27, 27, 27], [41, 40], []]


@SHARINGS
def test_no_queries_have_no_answers_and_no_query_is_no_answer(running):
    computer = running(batch_limit=16)._computers[CONV][0]
    works = [problem(seed, [1, 1], queries=0) for seed in range(3)]
    queries = [works[0].query, None, works[2].query]
    adapted = computer.adapt([work.support for work in works], 3, queries)
    assert [each.answers is None for each in adapted] == [False, True, False]
    assert adapted[0].answers.probabilities.shape == (0, 2)


@pytest.mark.parametrize("sharing", [ON_CPU])
def test_a_cpu_computes_every_task_alone_and_answers_each_as_it_is_done(running, device, seen):
    engine = running(batch_limit=16)
    works = [problem(seed, [3, 2], queries=6) for seed in range(6)]
    held = device.hold(engine)
    futures = [submit(engine, f"own:{seed}", work) for seed, work in enumerate(works)]
    device.gate.set()
    held.result(SECONDS)
    together = [future.result(SECONDS) for future in futures]
    assert engine.stats()["batches_total"] == 1 + len(works)
    for seed, (work, among) in enumerate(zip(works, together, strict=True)):
        alone = submit(engine, f"alone:{seed}", work).result(SECONDS)
        np.testing.assert_array_equal(alone.answers.probabilities, among.answers.probabilities)
    assert seen == set(), "nothing was batched"


def test_queries_of_one_session_by_several_callers_are_computed_together(
    running, device, monkeypatch
):
    engine, passes = running(batch_limit=16), []
    works = [problem(seed, [3, 2], queries=20) for seed in (1, 2)]
    for number, work in enumerate(works):
        submit(engine, f"own:{number}", work).result(SECONDS)
    answer = Alone.answer

    def recording(self, phi, parts):
        passes.append(sum(map(len, parts)))
        return answer(self, phi, parts)

    monkeypatch.setattr(Alone, "answer", recording)
    held = device.hold(engine)
    sizes = [(0, 3), (1, 2), (0, 1), (0, 9), (1, 5), (0, 7)]
    futures, taken = [], [0, 0]
    for number, size in sizes:
        start = taken[number]
        taken[number] += size
        query = works[number].query[start : taken[number]]
        futures.append(engine.predict(CONV, f"own:{number}", query))
    device.gate.set()
    held.result(SECONDS)
    answers = [future.result(SECONDS) for future in futures]
    assert passes[-2:] == [20, 7]
    for number, work in enumerate(works):
        own = [it for it, (of, _) in zip(answers, sizes, strict=True) if of == number]
        whole = engine.predict(CONV, f"own:{number}", work.query[: taken[number]]).result(SECONDS)
        for name in ("probabilities", "outlier"):
            parts = np.concatenate([getattr(it, name) for it in own])
            np.testing.assert_allclose(parts, getattr(whole, name), rtol=0, atol=1e-6)
