"""The device fails: who is told, who is not hurt, and that nobody is left waiting."""

import time
from concurrent.futures import Future

import numpy as np
import pytest

from app.engine import Engine
from app.engine import engine as engine_module
from app.engine import lane as lane_module
from app.engine.compute import Computer
from app.errors import EngineFailed
from tests.unit.engine.helpers import (
    CONV,
    SECONDS,
    answer,
    frames,
    marked,
    plain,
    problem,
    submit,
    wait_until,
)

POISON = 666.0
FATAL = 667.0


@pytest.fixture(autouse=True)
def poison(device):
    device.poison = {POISON: RuntimeError("cuda error"), FATAL: SystemExit("the thread is gone")}


def poisoned(seed: int = 0):
    return marked(problem(seed, [1, 2]), POISON)


def fail(engine: Engine) -> None:
    """Sends one request that fails, and waits for its error."""
    with pytest.raises(EngineFailed):
        submit(engine, "poisoned", poisoned()).result(SECONDS)


def check_broken(engine: Engine) -> None:
    """The engine says that it is broken, and takes nothing more."""
    work = problem(1, [1, 1])
    assert engine.failed
    assert not engine.ready
    for call in (
        lambda: submit(engine, "late", work),
        lambda: engine.predict(CONV, "late", work.query),
        lambda: engine.weights(CONV, "late"),
    ):
        with pytest.raises(EngineFailed) as caught:
            call()
        assert caught.value.retry_after_seconds >= 1


def test_a_failing_request_fails_alone_and_its_neighbours_are_answered(running, device, models):
    engine = running()
    works = [problem(seed, [1, 2]) for seed in range(8)]
    works[3] = poisoned(3)
    device.hold(engine)
    futures = [submit(engine, f"neighbour:{n}", work) for n, work in enumerate(works)]
    device.gate.set()
    with pytest.raises(EngineFailed) as caught:
        futures.pop(3).result(SECONDS)
    assert "cuda error" not in str(caught.value), "what broke inside is no business of a caller"
    works.pop(3)
    for future, work in zip(futures, works, strict=True):
        want = plain(models[CONV], work).answers.probabilities
        got = future.result(SECONDS).answers.probabilities
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert engine.ready
    assert engine.stats()["batch_failures_total"] == 2, "the batch, and the poisoned one alone"


def test_a_failing_prediction_fails_alone_too(running, device):
    engine, work = running(), problem(1, [1, 2])
    want = answer(engine, "phi", work).answers.probabilities
    bad = work.query.copy()
    bad.flat[0] = POISON
    device.hold(engine)
    futures = [engine.predict(CONV, "phi", query) for query in (work.query, bad, work.query)]
    device.gate.set()
    with pytest.raises(EngineFailed):
        futures[1].result(SECONDS)
    for future in (futures[0], futures[2]):
        got = future.result(SECONDS).probabilities
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_the_reason_is_logged(running, logs):
    fail(running())
    assert {"event": "a batch failed", "requests": 1, "error": "cuda error"}.items() <= dict(
        next(entry for entry in logs if entry["log_level"] == "error")
    ).items()


def test_failures_with_successes_between_them_do_not_break_the_engine(running):
    engine = running()
    for _ in range(3):
        fail(engine)
        fail(engine)
        answer(engine, "good", problem(1, [1, 1]))
    assert engine.ready
    assert not engine.failed


def test_three_failures_in_a_row_break_the_engine_and_all_who_wait_are_told(running, device):
    engine, work = running(batch_limit=1), problem(1, [1, 2])
    held = device.hold(engine)
    failing = [submit(engine, f"bad:{n}", poisoned(n)) for n in range(3)]
    waiting: list[Future] = [submit(engine, f"waits:{n}", work) for n in range(5)]
    waiting += [engine.predict(CONV, "held", work.query), engine.weights(CONV, "held")]
    device.gate.set()
    held.result(SECONDS)
    for future in failing + waiting:
        with pytest.raises(EngineFailed):
            future.result(SECONDS)
    check_broken(engine)


def test_a_batch_that_fails_throughout_breaks_the_engine(running, device):
    engine = running()
    device.hold(engine)
    futures = [submit(engine, f"bad:{n}", poisoned(n)) for n in range(8)]
    device.gate.set()
    for future in futures:
        with pytest.raises(EngineFailed):
            future.result(SECONDS)
    wait_until(lambda: engine.failed)
    check_broken(engine)


@pytest.mark.parametrize("neighbours", [0, 3])
def test_the_death_of_the_devices_thread_reaches_everybody(running, device, neighbours):
    engine, work = running(), problem(1, [1, 2])
    device.hold(engine)
    batch = [submit(engine, f"with:{n}", work) for n in range(neighbours)]
    batch.append(submit(engine, "fatal", marked(work, FATAL)))
    waiting = [engine.predict(CONV, "held", work.query), engine.weights(CONV, "held")]
    device.gate.set()
    for future in batch + waiting:
        with pytest.raises(EngineFailed):
            future.result(SECONDS)
    wait_until(lambda: engine.failed)
    check_broken(engine)


def test_a_failure_while_warming_up_breaks_the_engine(build, monkeypatch, logs):
    def out_of_memory(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Computer, "warm", out_of_memory)
    engine = build()
    engine.start()
    wait_until(lambda: engine.failed)
    check_broken(engine)
    assert any(entry.get("error") == "out of memory" for entry in logs)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_even_a_log_that_cannot_be_written_leaves_nobody_waiting(running, device, monkeypatch):
    class BrokenLog:
        def exception(self, *_, **__):
            raise OSError("no space left on device")

    engine, work = running(), problem(1, [1, 2])
    device.hold(engine)
    for module in (engine_module, lane_module):
        monkeypatch.setattr(module, "log", BrokenLog())
    futures = [submit(engine, "bad", poisoned()), engine.predict(CONV, "held", work.query)]
    device.gate.set()
    for future in futures:
        with pytest.raises(EngineFailed):
            future.result(SECONDS)
    engine._lanes[0].thread.join(SECONDS)
    check_broken(engine)


def test_stopping_a_broken_engine_returns_at_once(running):
    engine = running()
    for _ in range(3):
        fail(engine)
    wait_until(lambda: engine.failed)
    began = time.monotonic()
    engine.stop(SECONDS)
    assert time.monotonic() - began < SECONDS / 2


def test_a_broken_engine_may_refuse_for_hours_without_growing(running):
    engine = running()
    for _ in range(3):
        fail(engine)
    wait_until(lambda: engine.failed)
    for _ in range(1000):
        with pytest.raises(EngineFailed) as caught:
            engine.weights(CONV, "any")
    assert frames(caught.value) < 10


def test_busy_seconds_count_every_second_once(running, device, monkeypatch):
    engine = running()
    slow = Computer.adapt

    def sleeping(computer, *arguments):
        time.sleep(0.02)
        return slow(computer, *arguments)

    monkeypatch.setattr(Computer, "adapt", sleeping)
    began = time.monotonic()
    device.hold(engine)
    futures = [
        submit(engine, f"{n}", poisoned() if n == 4 else problem(n, [1, 1])) for n in range(5)
    ]
    device.gate.set()
    for future in futures[:4]:
        future.result(SECONDS)
    with pytest.raises(EngineFailed):
        futures[4].result(SECONDS)
    engine.stop(SECONDS)
    elapsed = time.monotonic() - began
    assert 6 * 0.02 < engine.stats()["busy_seconds_total"] <= elapsed
