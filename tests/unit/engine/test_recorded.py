"""The engine on a GPU, where its computations are recorded and replayed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.engine import Engine
from app.engine.requests import SupportSet
from app.engine.shapes import ON_CPU, sharing_of
from app.engine.staging import Staging
from app.recordings import CannotRecord, Recordings
from app.settings import Settings
from tests.unit.engine.helpers import (
    CONV,
    DEEP,
    FIXED,
    PADDED,
    SAME,
    SECONDS,
    answer,
    plain,
    problem,
    rows_of,
    start,
    submit,
    wait_until,
)


@pytest.mark.parametrize("sharing", [PADDED])
def test_a_network_that_cannot_be_recorded_is_served_and_named(running, models, monkeypatch, logs):
    def refuse(*_):
        raise CannotRecord("it reads values back")

    monkeypatch.setattr(Recordings, "run", refuse)
    work, engine = problem(1, [2, 3]), running()
    np.testing.assert_allclose(
        rows_of(answer(engine, "own", work)), rows_of(plain(models[CONV], work)), **SAME
    )
    said = [entry for entry in logs if entry["log_level"] == "warning"]
    named = sorted((entry["model"], entry["version"], entry["reason"]) for entry in said)
    versions = sorted((key.name, key.version) for key in (CONV, DEEP, FIXED))
    assert named == [(*version, "it reads values back") for version in versions], "once each"


@pytest.mark.parametrize("sharing", [PADDED])
def test_sessions_of_more_classes_than_new_ones_may_have_are_answered(running, models):
    engine = running(max_support=16, max_classes=8)
    wide, narrow = problem(1, [1] * 12), problem(2, [1, 2])
    futures = [submit(engine, f"{n}", work) for n, work in enumerate([narrow, wide, wide])]
    for work, future in zip([narrow, wide, wide], futures, strict=True):
        want = rows_of(plain(models[CONV], work))
        np.testing.assert_allclose(rows_of(future.result(SECONDS)), want, **SAME)
    asked = [engine.predict(CONV, key, wide.query) for key in "12"]
    for future in asked:
        want = rows_of(plain(models[CONV], wide))
        np.testing.assert_allclose(future.result(SECONDS).probabilities, want, **SAME)
    assert engine.stats()["batch_failures_total"] == 0


@pytest.mark.parametrize("sharing", [PADDED])
def test_what_another_sessions_weights_left_in_a_slot_is_in_no_answer(running, models):
    engine = running(max_support=16, max_classes=8)
    wide, narrow = problem(1, [1] * 8, model=DEEP), problem(2, [1, 1], model=DEEP)
    want = rows_of(plain(models[DEEP], narrow))
    answer(engine, "narrow", narrow)
    huge = SupportSet(wide.support.inputs * 1e30, wide.support.labels, wide.support.ways)
    overflown = answer(engine, "huge", replace(wide, support=huge))
    assert not np.isfinite(rows_of(overflown)).any()

    later = engine.predict(DEEP, "narrow", narrow.query).result(SECONDS)

    np.testing.assert_allclose(later.probabilities, want, **SAME)


@pytest.mark.parametrize("sharing", [replace(PADDED, together=4, queries_together=4)])
def test_what_one_replay_gave_is_kept_when_the_next_of_its_shape_runs(running, models):
    computer = running(batch_limit=8)._computers[CONV][0]
    works = [problem(seed, [1, 1], queries=3 + seed) for seed in range(4)]
    supports, queries = [work.support for work in works], [work.query for work in works]
    adapted = computer.adapt(supports, works[0].steps, queries)
    for work, (_, losses, got) in zip(works, adapted, strict=True):
        want = plain(models[CONV], work)
        np.testing.assert_allclose(losses, want.support_loss, **SAME)
        np.testing.assert_allclose(got.probabilities, rows_of(want), **SAME)
        np.testing.assert_allclose(got.outlier, want.answers.outlier, **SAME)


@pytest.mark.parametrize("sharing", [replace(PADDED, together=4, queries_together=4)])
def test_inputs_are_staged_only_once_those_of_two_turns_before_were_read(running, monkeypatch):
    computer, told = running()._computers[CONV][0], []
    run = Recordings.run

    def tell(what: str, method):
        def told_and_done(*arguments):
            told.append(what)
            return method(*arguments)

        return told_and_done

    monkeypatch.setattr(Staging, "next", tell("next", Staging.next))
    monkeypatch.setattr(Staging, "sent", tell("sent", Staging.sent))
    monkeypatch.setattr(Recordings, "run", tell("run", run))
    works = [problem(seed, [1, 1], queries=3) for seed in range(3)]
    adapted = computer.adapt([work.support for work in works], works[0].steps)
    assert told == ["next", "run", "sent"] * 3
    told.clear()
    asked = [(each.phi, work.query) for each, work in zip(adapted, works, strict=True)]
    computer.predict(asked)
    assert told == ["next", "run", "sent"] * 3


@pytest.mark.parametrize("sharing", [PADDED])
def test_there_are_slots_for_the_largest_batch_of_single_queries(running, models):
    engine = running(max_support=16, max_classes=8, batch_limit=64)
    works = [problem(seed, [1, 1], queries=1) for seed in range(64)]
    keys = [f"{seed}" for seed in range(64)]
    for key, work in zip(keys, works, strict=True):
        answer(engine, key, work)
    asked = zip(keys, works, strict=True)
    futures = [engine.predict(CONV, key, work.query) for key, work in asked]
    for work, future in zip(works, futures, strict=True):
        want = rows_of(plain(models[CONV], work))
        np.testing.assert_allclose(future.result(SECONDS).probabilities, want, **SAME)


@pytest.mark.parametrize("sharing", [PADDED])
def test_too_little_memory_is_said_with_what_helps(build, logs, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr(Recordings, "run", full)
    engine = build()
    engine.start()
    wait_until(lambda: engine.failed)
    [said] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (
        "memory does not suffice for conv version 1: lower INNERLOOP_MAX_SUPPORT" in said["error"]
    )


@pytest.mark.parametrize("numbers", [1, 28 * 28, 3 * 84 * 84, 3 * 1000 * 1000])
def test_of_large_inputs_fewer_share_a_computation(numbers):
    sharing = sharing_of(torch.device("cuda"), numbers)
    assert sharing.together * max(numbers, 28 * 28) <= max(4096 * 28 * 28, numbers)
    assert sharing.query_sizes[0] == 1
    assert sharing.largest <= sharing.together
    assert max(sharing.query_sizes) <= sharing.queries_together
    assert sharing.queries_together * max(numbers, 28 * 28) <= max(8192 * 28 * 28, numbers)
    assert sharing_of(torch.device("cpu"), numbers) is ON_CPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_answers_as_the_cpu_does_alone_and_in_company(registry, models):
    limits = {"max_support": 32, "max_classes": 8, "batch_limit": 8}
    engine = start(Engine(registry, Settings(device="cuda", **limits)))
    try:
        works = [
            replace(problem(seed, [1 + seed % 3, 2, 1], queries=1 + seed, model=model), steps=steps)
            for seed, model, steps in [
                (seed, model, steps)
                for seed in range(12)
                for model in (CONV, DEEP)
                for steps in (1, 3, 4)
            ]
        ]
        alone = [answer(engine, f"alone:{n}", work) for n, work in enumerate(works)]
        futures = [submit(engine, f"crowd:{n}", work) for n, work in enumerate(works)]
        for number, (work, one, future) in enumerate(zip(works, alone, futures, strict=True)):
            among, want = future.result(SECONDS), plain(models[work.model], work)
            np.testing.assert_allclose(rows_of(among), rows_of(one), **SAME)
            np.testing.assert_allclose(rows_of(one), rows_of(want), rtol=0, atol=1e-3)
            np.testing.assert_allclose(one.support_loss, want.support_loss, rtol=1e-3, atol=1e-4)
            later = engine.predict(work.model, f"crowd:{number}", work.query).result(SECONDS)
            np.testing.assert_allclose(later.probabilities, rows_of(among), **SAME)
    finally:
        engine.stop(SECONDS)
