"""The engine on a GPU, where its computations are recorded and replayed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.engine import Engine
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
