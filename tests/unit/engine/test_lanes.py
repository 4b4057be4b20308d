"""Several lanes of one device: who works when, on how many threads, and what stays as it was."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine import Engine, ModelKey, PhiMissing, SupportSet
from app.engine.alone import Alone
from app.engine.cache import PhiCache
from app.engine.compute import Computer
from app.engine.lane import SMALL_WORK, Lane, Limits
from app.engine.phi import Phi
from app.engine.queue import Batch, Entry, WorkQueue
from app.engine.requests import Answers
from app.engine.shapes import ON_CPU, Sharing, sharing_of
from app.engine.work import Predict
from app.errors import Draining, EngineFailed
from app.recordings import CannotRecord
from app.registry import LoadedModel
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
THREADS = 3
FATAL = 667.0


@pytest.fixture
def sharing() -> Sharing:
    return replace(ON_CPU, lanes=LANES)


@pytest.fixture
def build(build) -> Iterator[Callable[..., Engine]]:
    """Makes engines of so many threads, where this thread goes on with as many as it has."""

    def build_there(threads: int, limits: dict) -> Engine:
        torch.get_num_threads()
        torch.set_num_threads(threads)
        return build(**limits)

    def with_threads(threads: int = THREADS, **limits) -> Engine:
        with ThreadPoolExecutor(1) as aside:
            return aside.submit(build_there, threads, limits).result(SECONDS)

    yield with_threads
    torch.set_num_threads(torch.get_num_threads())  # of threads that are started from now on, too


@pytest.fixture
def slow(monkeypatch) -> None:
    """No adaptation is done so soon that the next one need not go to another lane."""
    adapt = Computer.adapt

    def waiting(computer, *arguments, **named):
        time.sleep(0.02)
        return adapt(computer, *arguments, **named)

    monkeypatch.setattr(Computer, "adapt", waiting)


@pytest.fixture
def queue() -> WorkQueue:
    """With room for 10 entries, of a cost of 100 at the same time."""
    return WorkQueue(10, 100)


@pytest.fixture
def lanes(queue) -> Iterator[Callable[[int], Future[Batch | None]]]:
    """Has a lane wait for a batch of one entry."""
    with ThreadPoolExecutor(LANES) as pool:
        yield lambda lane: pool.submit(queue.next_batch, 1, 100, lane)
        queue.close(Draining("the test is over"))


def count_threads(monkeypatch, method: str) -> list[int]:
    """The numbers of threads that a method of computers was called with from now on, in order."""
    numbers: list[int] = []
    original = getattr(Computer, method)

    def counting(*arguments, **named):
        numbers.append(torch.get_num_threads())
        return original(*arguments, **named)

    monkeypatch.setattr(Computer, method, counting)
    return numbers


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The numbers of threads that adaptations were computed with, in their order."""
    return count_threads(monkeypatch, "adapt")


def check_lanes(engine: Engine, model: LoadedModel, works: Sequence[Problem]) -> None:
    """All lanes answer as the model does."""
    futures = [submit(engine, f"{n}", work) for n, work in enumerate(works)]
    for future, work in zip(futures, works, strict=True):
        want = rows_of(plain(model, work))
        np.testing.assert_allclose(rows_of(future.result(SECONDS)), want, **SAME)
    assert all(lane.counts.batches for lane in engine._lanes)


def test_of_lanes_that_rest_the_first_takes_what_comes(queue, lanes):
    second, first = lanes(1), lanes(0)
    queue.put(entry("a"))
    assert names(first.result(SECONDS)) == ["a"]
    assert first.result().alone
    with pytest.raises(TimeoutError):
        second.result(0.05)
    queue.put(entry("b"))
    assert names(second.result(SECONDS)) == ["b"]
    assert not second.result().alone


def test_what_one_lane_leaves_another_takes_at_once(queue, lanes):
    second = lanes(1)
    for name in "abc":
        queue.put(entry(name))
    first = queue.next_batch(1, 100, 0)
    assert names(first) == ["a"]
    assert not first.alone, "others wait"
    assert names(second.result(SECONDS)) == ["b"]


def test_a_lane_that_is_done_is_at_work_no_more(queue):
    for name in "abc":
        queue.put(entry(name))
    assert not queue.next_batch(1, 100, 0).alone
    assert not queue.next_batch(1, 100, 1).alone
    assert not queue.next_batch(1, 100, 0).alone, "the second lane has not said that it is done"
    queue.put(entry("d"))
    queue.put(entry("e"))
    assert names(queue.next_batch(1, 100, 1)) == ["d"]
    assert not queue.next_batch(1, 100, 0).alone


def test_no_more_work_is_done_at_the_same_time_than_memory_has_room_for(queue, lanes):
    for name, cost in (("a", 60), ("b", 60), ("c", 10)):
        queue.put(entry(name, name, cost))
    assert names(queue.next_batch(9, 100, 0)) == ["a"]
    second = lanes(1)
    with pytest.raises(TimeoutError):
        second.result(0.05)
    assert names(queue.next_batch(9, 100, 0)) == ["b"], "c does not overtake it"
    assert names(second.result(SECONDS)) == ["c"]


def test_what_is_more_than_memory_has_room_for_is_done_alone(queue, lanes):
    for name, cost in (("a", 500), ("b", 11)):
        queue.put(entry(name, name, cost))
    first = queue.next_batch(9, 100, 0)
    assert names(first) == ["a"]
    assert first.alone, "b waits until it is done"
    second = lanes(1)
    with pytest.raises(TimeoutError):
        second.result(0.05)
    assert names(queue.next_batch(9, 100, 0)) == ["b"]


def test_what_is_little_waits_for_no_large_task_where_a_lane_rests(queue, lanes):
    for name, cost in (("a", 500), ("b", 10)):
        queue.put(entry(name, name, cost))
    assert names(queue.next_batch(9, 100, 0)) == ["a"]
    assert names(lanes(1).result(SECONDS)) == ["b"]


def test_closing_sends_every_lane_home_once_nothing_waits(queue, lanes):
    waiting = [lanes(lane) for lane in (1, 2)]
    queue.put(entry("a"))
    queue.close(Draining("closing"))
    batches = [lane.result(SECONDS) for lane in waiting]
    assert sorted(map(names, batches)) == [[], ["a"]], "lane 0 may have gone home already"


def test_a_cpu_has_lanes_for_its_threads_and_a_gpu_one():
    assert sharing_of(torch.device("cpu"), 784).lanes > 1
    assert sharing_of(torch.device("cuda"), 784).lanes == 1


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (THREADS, LANES)])
def test_there_are_no_more_lanes_than_threads(build, threads, lanes):
    assert len(build(threads)._lanes) == build(threads).stats()["lanes"] == lanes


def test_every_lane_has_a_network_of_its_own_and_all_one_theta(running):
    engine = running()
    for computers in engine._computers.values():
        parts = [set(map(id, each.learner.network.modules())) for each in computers]
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert len(
            {value.data_ptr() for each in computers for value in each.theta.values()}
        ) == len(computers[0].theta)


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
    wait_until(lambda: not engine._queue._at_work)  # its lane may not be back yet
    held = device.hold(engine)
    answer(engine, "beside", problem(2, [1, 2]))
    device.gate.set()
    held.result(SECONDS)
    assert counted == [THREADS, THREADS, THREADS // LANES], "who came first was alone"


def test_what_is_done_for_a_new_version_has_all_threads(running):
    assert running()._on_device(lambda _: torch.get_num_threads()) == THREADS


def test_a_lone_request_of_few_queries_has_one_lanes_share(running, monkeypatch):
    engine, work = running(), problem(1, [1, 2])
    answer(engine, "kept", work)
    asked = count_threads(monkeypatch, "predict")
    for queries in (1, SMALL_WORK, SMALL_WORK + 1):
        engine.predict(CONV, "kept", work.query[:queries]).result(SECONDS)
    assert asked == [THREADS // LANES, THREADS // LANES, THREADS]


class Recording:
    """A computer that notes how many threads it is given."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def predict(self, requests):
        self.numbers.append(torch.get_num_threads())
        return [Answers(np.zeros((len(query), 2), np.float32), None) for _, query in requests]


@pytest.mark.parametrize(("callers", "threads"), [(1, THREADS), (3, THREADS // LANES)])
def test_one_request_has_all_threads_and_several_at_once_one_lanes_share(queue, callers, threads):
    computer, cache = Recording(), PhiCache(1000)
    cache.put("one", Phi(torch.zeros(3), 2, 2))
    work = Predict(np.zeros((SMALL_WORK + 1, 5), np.float32))
    for _ in range(callers):
        queue.put(Entry([computer], "one", work, "alike", SMALL_WORK + 1))
    queue.close(Draining("no more"))
    limits = Limits(16, 100)
    lane = Lane(0, LANES, THREADS, queue=queue, cache=cache, limits=limits, run=Lane.work)
    lane.thread.start()
    lane.thread.join(SECONDS)
    assert computer.numbers == [threads]


@pytest.mark.usefixtures("slow")
def test_what_other_threads_set_does_not_change_the_number_of_a_lane(running, counted):
    engine = running()
    torch.set_num_threads(torch.get_num_threads())  # where no lane but the first has computed yet
    counted.clear()
    futures = [submit(engine, f"{seed}", problem(seed, [1, 2])) for seed in range(20)]
    for future in futures:
        future.result(SECONDS)
    assert set(counted) <= {THREADS, THREADS // LANES}
    assert counted.count(THREADS // LANES) > 10


@pytest.mark.usefixtures("slow")
def test_many_requests_on_all_lanes_all_get_their_own_answers(running, models):
    engine = running(queue_limit=1000)
    works = [problem(seed, [1 + seed % 3, 1, 2]) for seed in range(30)]
    check_lanes(engine, models[CONV], works)
    asked = [engine.predict(CONV, f"{n}", work.query) for n, work in enumerate(works)]
    for future, work in zip(asked, works, strict=True):
        want = rows_of(plain(models[CONV], work))
        np.testing.assert_allclose(future.result(SECONDS).probabilities, want, **SAME)
    assert engine.stats()["batched_requests_total"] == 2 * len(works)


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


def test_a_lane_that_rests_keeps_nothing_of_its_last_batch(running):
    engine = running()
    futures = [submit(engine, f"{seed}", problem(seed, [1, 2])) for seed in range(20)]
    for future in futures:
        future.result(SECONDS)
    wait_until(lambda: not any(lane.batch for lane in engine._lanes))


@pytest.mark.usefixtures("slow")
def test_a_version_that_comes_later_is_served_by_every_lane(build, models, tmp_path: Path):
    copy, newer = save_models(tmp_path), ModelKey("conv", 2)
    engine = start(build(of=copy))
    save_model(copy, newer, models[CONV].card.network, shape=(1, 12, 12))
    engine.reload()
    works = [replace(problem(seed, [1, 2]), model=newer) for seed in range(30)]
    check_lanes(engine, copy.load("conv", 2), works)


@pytest.mark.usefixtures("slow")
def test_a_network_of_ones_own_is_made_anew_for_every_lane(build, tmp_path: Path, monkeypatch):
    def never(*_: object) -> None:
        raise TypeError("cannot pickle '_thread.lock' object")

    monkeypatch.setattr(own_networks.Good, "__deepcopy__", never, raising=False)
    registry, own = save_models(tmp_path), ModelKey("own", 1)
    name = "tests.unit.learning.own_networks:Good"
    save_model(registry, own, {"name": name, "filters": 2}, shape=(1, 12))
    rng = np.random.default_rng(0)
    works = [
        Problem(own, SupportSet(inputs, np.array([0, 1, 1]), 2), inputs + 0.5)
        for inputs in rng.normal(size=(30, 3, 1, 12)).astype(np.float32)
    ]
    check_lanes(start(build(of=registry)), registry.load("own", 1), works)


def test_no_two_threads_compute_with_one_computer_while_a_version_is_warmed(
    running, two, monkeypatch
):
    threads: dict[int, set[str]] = defaultdict(set)

    def seen(method):
        def call(alone: Alone, *arguments):
            threads[id(alone)].add(threading.current_thread().name)
            return method(alone, *arguments)

        return call

    def refuse(_alone: Alone) -> None:
        raise CannotRecord("it is a network of somebody's own")

    monkeypatch.setattr(Alone, "record", refuse)
    for name in ("adapt", "answer"):
        monkeypatch.setattr(Alone, name, seen(getattr(Alone, name)))
    engine = running(of=two, max_support=64, max_classes=64)
    works = [problem(seed, [2, 3, 1]) for seed in range(8)]
    wanted = [rows_of(plain(two.load(CONV.name, CONV.version), work)) for work in works]
    rounds = 0
    older = engine._computers[CONV]
    while rounds < 3 or not all(computer.recorded for computer in older):
        futures = [submit(engine, f"{rounds}:{n}", work) for n, work in enumerate(works)]
        for future, want in zip(futures, wanted, strict=True):
            np.testing.assert_allclose(rows_of(future.result(SECONDS)), want, **SAME)
        rounds += 1
    alone = [id(computer.alone) for computer in older]
    assert all(len(threads[each]) <= 1 for each in alone)
    assert sum(len(threads[each]) for each in alone) > 1, "several lanes were at work"
