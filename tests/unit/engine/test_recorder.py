"""Older versions: served from the start, and as fast as others once somebody has asked for them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from app.engine import Engine, ModelKey
from app.engine.compute import Computer
from app.recordings import Recordings
from tests.unit.engine.helpers import (
    CONV,
    NEWER,
    PADDED,
    SAME,
    SECONDS,
    answer,
    plain,
    problem,
    rows_of,
    start,
    wait_until,
)


def is_warm(engine: Engine) -> Callable[[], bool]:
    return lambda: all(computer.recorded for computer in engine._computers[CONV])


@dataclass
class Held:
    """Warming that waits before every shape until it may go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    done: int = 0


@pytest.fixture
def held(monkeypatch) -> Held:
    held, rehearse = Held(), Computer.rehearse

    def wait(computer: Computer, do) -> None:
        held.reached.set()
        assert held.go_on.wait(SECONDS)
        held.done += 1
        rehearse(computer, do)

    monkeypatch.setattr(Computer, "rehearse", wait)
    return held


@pytest.mark.parametrize("sharing", [PADDED])
def test_an_older_version_records_nothing_for_a_request_and_all_once_asked_for(build, two, logs):
    engine = start(build(of=two))
    [older], [newer] = engine._computers[CONV], engine._computers[NEWER]
    assert newer.adaptations._by_shapes
    assert not older.adaptations._by_shapes
    work = problem(1, [1, 2])
    want = rows_of(plain(two.load(CONV.name, CONV.version), work))
    np.testing.assert_allclose(rows_of(answer(engine, "cold", work)), want, **SAME)
    wait_until(is_warm(engine))
    assert older.adaptations._by_shapes.keys() == newer.adaptations._by_shapes.keys()
    assert older.answers._by_shapes.keys() == newer.answers._by_shapes.keys()
    np.testing.assert_allclose(rows_of(answer(engine, "warm", work)), want, **SAME)
    wait_until(lambda: any(entry["event"] == "an older version is warm" for entry in logs))


@pytest.mark.parametrize("sharing", [PADDED])
def test_an_older_version_for_which_memory_does_not_suffice_is_served_slowly(
    build, two, monkeypatch, logs
):
    engine, run = start(build(of=two)), Recordings.run
    [older] = engine._computers[CONV]
    full = {id(older.adaptations)}

    def filled(recordings: Recordings, *arguments):
        if id(recordings) in full:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(recordings, *arguments)

    monkeypatch.setattr(Recordings, "run", filled)
    work = problem(1, [1, 2])
    want = rows_of(plain(two.load(CONV.name, CONV.version), work))
    for number in range(5):
        got = rows_of(answer(engine, f"{number}", work))
        np.testing.assert_allclose(got, want, **SAME)
    wait_until(lambda: any("stays slow" in entry["event"] for entry in logs))
    [said] = [entry["reason"] for entry in logs if "stays slow" in entry["event"]]
    assert said.startswith("lower INNERLOOP_MAX_SUPPORT or INNERLOOP_BATCH_LIMIT: CUDA out of")
    np.testing.assert_allclose(rows_of(answer(engine, "later", work)), want, **SAME)
    assert engine.ready
    assert engine.stats()["batch_failures_total"] == 0


@pytest.mark.parametrize("sharing", [PADDED])
def test_an_engine_stops_in_the_middle_of_warming_an_older_version(build, two, held):
    engine = start(build(of=two))
    answer(engine, "cold", problem(1, [1, 2]))
    assert held.reached.wait(SECONDS)
    stopping = threading.Thread(target=engine.stop, args=[SECONDS])
    stopping.start()
    wait_until(lambda: engine._queue.closed)
    held.go_on.set()
    stopping.join(SECONDS)
    assert not stopping.is_alive()
    assert not engine._recorder.thread.is_alive()
    assert not is_warm(engine)()


@pytest.mark.parametrize("sharing", [PADDED])
def test_a_version_that_is_gone_is_not_warmed_to_its_end(build, two, held, logs):
    engine = start(build(of=two))
    answer(engine, "cold", problem(1, [1, 2]))
    assert held.reached.wait(SECONDS)
    del engine._computers[CONV]
    held.go_on.set()
    engine._recorder.stop()
    engine._recorder.thread.join(SECONDS)
    assert held.done == 1
    assert not any(entry["event"] == "an older version is warm" for entry in logs)


def test_a_version_that_fails_while_it_is_warmed_at_the_start_is_named(
    build, two, monkeypatch, logs
):
    def fail(_computer: Computer) -> None:
        raise ValueError("I do not like it")

    monkeypatch.setattr(Computer, "warm", lambda *_: iter([fail]))
    engine = build(of=two)
    engine.start()
    wait_until(lambda: engine.failed)
    named = [entry for entry in logs if entry["event"] == "a version cannot be warmed"]
    assert [ModelKey(entry["model"], entry["version"]) for entry in named] == [NEWER]


def test_of_what_the_engine_has_a_lane_do_only_one_thing_waits(running, device):
    engine, done = running(), []
    held = device.hold(engine)
    askers = [
        threading.Thread(target=engine._on_device, args=[lambda _, n=n: done.append(n)])
        for n in range(3)
    ]
    for asker in askers:
        asker.start()
    wait_until(lambda: len(engine._queue) > 0)
    time.sleep(0.05)  # for the others to come
    assert len(engine._queue) == 1, "else a full queue could displace one"
    device.gate.set()
    held.result(SECONDS)
    for asker in askers:
        asker.join(SECONDS)
    assert sorted(done) == [0, 1, 2]
