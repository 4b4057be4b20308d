"""Several lanes of one device: who works when, on how many threads, and what stays as it was."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine import Engine, ModelKey, PhiMissing, SupportSet
from app.engine.compute import Computer
from app.engine.queue import WorkQueue
from app.engine.shapes import ON_CPU, Sharing, sharing_of
from app.errors import Draining, EngineFailed
from app.settings import Settings
from tests.unit.engine.helpers import (
    CONV,
    SAME,
    SECONDS,
    Problem,
    answer,
    marked,
    plain,
    problem,
    rows_of,
    save_model,
    save_models,
    start,
    submit,
    wait_until,
)
from tests.unit.engine.test_queue import entry, names
from tests.unit.learning import own_networks

LANES = 3
THREADS = 6
FATAL = 667.0


@pytest.fixture
def sharing() -> Sharing:
    return replace(ON_CPU, lanes=LANES)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The numbers of threads that adaptations were computed with, in their order."""
    numbers: list[int] = []
    adapt = Computer.adapt

    def counting(computer, supports, steps):
        numbers.append(torch.get_num_threads())
        return adapt(computer, supports, steps)

    monkeypatch.setattr(Computer, "adapt", counting)
    return numbers


def test_of_lanes_that_rest_the_first_takes_what_comes():
    queue = WorkQueue(10)
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(queue.next_batch, 1, 100, 1)
        first = pool.submit(queue.next_batch, 1, 100, 0)
        queue.put(entry("a"))
        assert names(first.result(SECONDS)) == ["a"]
        assert queue.one_at_work
        assert not second.done()
        queue.put(entry("b"))
        assert names(second.result(SECONDS)) == ["b"]
        assert not queue.one_at_work


def test_what_one_lane_leaves_another_takes_at_once():
    queue = WorkQueue(10)
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(queue.next_batch, 1, 100, 1)
        for name in "abc":
            queue.put(entry(name))
        assert names(queue.next_batch(1, 100, 0)) == ["a"]
        assert names(second.result(SECONDS)) == ["b"]
        assert not queue.one_at_work, "one waits"


def test_closing_sends_every_lane_home():
    queue = WorkQueue(10)
    with ThreadPoolExecutor(LANES) as pool:
        batches = [pool.submit(queue.next_batch, 1, 100, lane) for lane in range(LANES)]
        queue.close(Draining("closing"))
        assert [batch.result(SECONDS) for batch in batches] == [None] * LANES


def test_a_cpu_has_lanes_for_its_threads_and_a_gpu_one():
    assert sharing_of(torch.device("cpu"), 784).lanes > 1
    assert sharing_of(torch.device("cuda"), 784).lanes == 1


@pytest.mark.parametrize(("number", "lanes"), [(1, 1), (2, 2), (THREADS, LANES)])
def test_there_are_no_more_lanes_than_threads(build, number, lanes):
    torch.set_num_threads(number)
    assert len(build()._lanes) == lanes


def test_while_one_request_is_computed_others_are_answered(running, device, models):
    engine = running()
    held = device.hold(engine)
    for seed in range(3):
        work = problem(seed, [1, 2])
        want = rows_of(plain(models[CONV], work))
        np.testing.assert_allclose(rows_of(answer(engine, f"{seed}", work)), want, **SAME)
        again = engine.predict(CONV, f"{seed}", work.query).result(SECONDS)
        np.testing.assert_allclose(again.probabilities, want, **SAME)
    assert not held.done()
    device.gate.set()
    held.result(SECONDS)
    assert engine.stats()["batches_total"] == 7


def test_a_lone_request_has_all_threads_and_those_side_by_side_their_share(
    running, device, counted
):
    engine = running()
    counted.clear()  # of warming up
    answer(engine, "alone", problem(1, [1, 2]))
    assert counted == [THREADS]
    held = device.hold(engine)
    answer(engine, "beside", problem(2, [1, 2]))
    device.gate.set()
    held.result(SECONDS)
    assert counted == [THREADS, THREADS, THREADS // LANES], "who came first was alone"


def test_a_waiting_request_leaves_the_first_lane_its_share(running, device, counted):
    engine, queue = running(), []
    counted.clear()
    take = WorkQueue._take

    def two_at_once(waiting: WorkQueue, most: int, most_cost: int):
        while len(waiting) + len(queue) < 2:
            waiting._changed.wait(0.01)
        queue.append(None)
        return take(waiting, most, most_cost)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkQueue, "_take", two_at_once)
        futures = [submit(engine, f"{seed}", problem(seed, [1, 2])) for seed in range(2)]
        for future in futures:
            future.result(SECONDS)
    assert counted == [THREADS // LANES] * 2


def test_many_requests_on_all_lanes_all_get_their_own_answers(running, models):
    engine = running(queue_limit=1000)
    works = [problem(seed, [1 + seed % 3, 1, 2]) for seed in range(60)]
    futures = [submit(engine, f"{n}", work) for n, work in enumerate(works)]
    for future, work in zip(futures, works, strict=True):
        want = rows_of(plain(models[CONV], work))
        np.testing.assert_allclose(rows_of(future.result(SECONDS)), want, **SAME)
    asked = [engine.predict(CONV, f"{n}", work.query) for n, work in enumerate(works)]
    for future, work in zip(asked, works, strict=True):
        want = rows_of(plain(models[CONV], work))
        np.testing.assert_allclose(future.result(SECONDS).probabilities, want, **SAME)
    assert all(lane.counts.batches for lane in engine._lanes)
    assert engine.stats()["batched_requests_total"] == 120


def test_what_is_forgotten_while_it_is_adapted_is_not_kept(running, device):
    engine = running()
    held = device.hold(engine)
    engine.forget("held")
    device.gate.set()
    held.result(SECONDS)
    wait_until(lambda: engine.stats()["phi_cache_sessions"] == 0)
    with pytest.raises(PhiMissing):
        engine.predict(CONV, "held", problem(0, [1, 1]).query).result(SECONDS)


def test_where_one_lane_fails_the_others_finish_and_the_engine_is_broken(running, device):
    device.poison = {FATAL: SystemExit("the thread is gone")}
    engine = running()
    held = device.hold(engine)
    with pytest.raises(EngineFailed):
        submit(engine, "fatal", marked(problem(1, [1, 2]), FATAL)).result(SECONDS)
    assert engine.failed
    assert not engine.ready
    device.gate.set()
    assert held.result(SECONDS).answers is not None
    engine.stop(SECONDS)
    assert not any(lane.thread.is_alive() for lane in engine._lanes)


def test_stopping_waits_for_every_lane(running, device):
    engine = running()
    held = device.hold(engine)
    thread = threading.Thread(target=engine.stop, args=(SECONDS,))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    device.gate.set()
    thread.join(SECONDS)
    assert held.result(0).answers is not None
    assert not any(lane.thread.is_alive() for lane in engine._lanes)


def test_a_version_that_comes_later_is_served_by_every_lane(build, models, tmp_path: Path):
    copy = save_models(tmp_path)
    engine = start(Engine(copy, Settings(device="cpu", max_support=16, max_classes=8)))
    newer = ModelKey("conv", 2)
    save_model(copy, newer, models[CONV].card.network, shape=(1, 12, 12))
    engine.reload()
    works = [replace(problem(seed, [1, 2]), model=newer) for seed in range(30)]
    want = copy.load("conv", 2)
    futures = [submit(engine, f"{n}", work) for n, work in enumerate(works)]
    for future, work in zip(futures, works, strict=True):
        np.testing.assert_allclose(
            rows_of(future.result(SECONDS)), rows_of(plain(want, work)), **SAME
        )
    engine.stop(SECONDS)


def test_a_network_of_ones_own_is_made_anew_for_every_lane(build, tmp_path: Path, monkeypatch):
    def never(*_: object) -> None:
        raise TypeError("cannot pickle '_thread.lock' object")

    monkeypatch.setattr(own_networks.Good, "__deepcopy__", never, raising=False)
    registry, own = save_models(tmp_path), ModelKey("own", 1)
    name = "tests.unit.learning.own_networks:Good"
    save_model(registry, own, {"name": name, "filters": 2}, shape=(1, 12))
    engine = start(Engine(registry, Settings(device="cpu", max_support=16, max_classes=8)))
    rng = np.random.default_rng(0)
    works = [
        Problem(own, SupportSet(inputs, np.array([0, 1, 1]), 2), inputs)
        for inputs in rng.normal(size=(30, 3, 1, 12)).astype(np.float32)
    ]
    futures = [submit(engine, f"{n}", work) for n, work in enumerate(works)]
    model = registry.load("own", 1)
    for future, work in zip(futures, works, strict=True):
        want = rows_of(plain(model, work))
        np.testing.assert_allclose(rows_of(future.result(SECONDS)), want, **SAME)
    engine.stop(SECONDS)
