"""From start to stop: when work is taken, refused, served at the end or failed."""

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine import Engine, ModelKey
from app.engine.compute import Computer
from app.errors import Draining, NotReady, QueueFull, RegistryError
from app.registry import Registry
from app.settings import Settings
from tests.unit.engine.helpers import (
    CONV,
    DEEP,
    SECONDS,
    SHAPES,
    answer,
    plain,
    problem,
    rows_of,
    save_model,
    save_models,
    start,
    submit,
    wait_until,
)


def stop_aside(engine: Engine, drain_seconds: float) -> threading.Thread:
    """Stops an engine from another thread, as a signal does."""
    thread = threading.Thread(target=engine.stop, args=(drain_seconds,))
    thread.start()
    return thread


def refused(engine: Engine) -> bool:
    """Whether new work is refused because the engine is stopping."""
    try:
        submit(engine, "probe", problem(0, [1, 1])).cancel()
    except Draining:
        return True
    return False


def test_before_start_nothing_is_taken(build):
    engine = build()
    assert not engine.ready
    assert not engine.failed
    with pytest.raises(NotReady) as caught:
        submit(engine, "early", problem(1, [1, 1]))
    assert caught.value.retry_after_seconds >= 1


def test_while_warming_up_nothing_is_taken_and_afterwards_it_is(build, monkeypatch):
    gate, warming, warm = threading.Event(), threading.Event(), Computer.warm

    def slow(computer, max_support):
        warming.set()
        assert gate.wait(SECONDS)
        yield from warm(computer, max_support)

    monkeypatch.setattr(Computer, "warm", slow)
    engine = build()
    engine.start()
    assert warming.wait(SECONDS)
    assert not engine.ready
    with pytest.raises(NotReady):
        submit(engine, "early", problem(1, [1, 1]))
    gate.set()
    wait_until(lambda: engine.ready)
    assert rows_of(answer(engine, "later", problem(1, [1, 1]))).shape == (6, 2)


def test_what_waits_at_stop_is_served_and_what_comes_later_is_refused(running, device, models):
    engine, work = running(), problem(2, [1, 2])
    held = device.hold(engine)
    waiting = [submit(engine, f"waits:{number}", work) for number in range(5)]
    stopping = stop_aside(engine, drain_seconds=SECONDS)
    wait_until(lambda: refused(engine))
    device.gate.set()
    stopping.join(SECONDS)
    assert held.done()
    want = rows_of(plain(models[CONV], work))
    for future in waiting:
        assert future.done(), "stop returned before the work was done"
        np.testing.assert_allclose(future.result(0).answers.probabilities, want, rtol=0, atol=1e-5)
    assert not engine.ready
    assert not engine.failed


def test_what_is_not_served_within_drain_seconds_fails_and_what_runs_is_finished(running, device):
    engine, work = running(), problem(2, [1, 2])
    held = device.hold(engine)
    waiting = [submit(engine, f"waits:{number}", work) for number in range(3)]
    waiting.append(engine.predict(CONV, "waits:0", work.query))
    engine.stop(0.01)
    for future in waiting:
        with pytest.raises(Draining) as caught:
            future.result(0)
        assert caught.value.retry_after_seconds >= 1
    assert not held.done()
    device.gate.set()
    assert len(held.result(SECONDS).support_loss) == 4


def test_stop_ends_the_devices_thread_and_may_be_called_again(running):
    engine = running()
    engine.stop(SECONDS)
    assert not engine.ready
    with pytest.raises(Draining):
        submit(engine, "late", problem(3, [1, 1]))
    engine.stop(SECONDS)


def test_an_engine_that_never_started_stops_at_once(build):
    engine = build()
    engine.stop(SECONDS)
    assert not engine.ready


def test_beyond_the_queue_limit_work_is_refused_and_the_rest_is_served(running, device):
    engine, work = running(queue_limit=4), problem(4, [1, 2])
    device.hold(engine)
    waiting = [submit(engine, f"waits:{number}", work) for number in range(4)]
    with pytest.raises(QueueFull) as caught:
        submit(engine, "too many", work)
    assert caught.value.retry_after_seconds >= 1
    assert engine.stats()["queue_length"] == 4
    device.gate.set()
    for future in waiting:
        assert future.result(SECONDS).answers.probabilities.shape == (6, 2)
    assert rows_of(answer(engine, "room again", work)).shape == (6, 2)


def test_callers_who_have_gone_cost_the_device_nothing(running, device):
    engine, work = running(), problem(5, [1, 2])
    device.hold(engine)
    before = device.adapted
    futures: list[Future] = [submit(engine, f"waits:{number}", work) for number in range(6)]
    for future in futures[::2]:
        assert future.cancel()
    device.gate.set()
    for number, future in enumerate(futures):
        if number % 2:
            future.result(SECONDS)
        else:
            with pytest.raises(CancelledError):
                future.result(0)
    assert device.adapted - before == 3


def test_a_broken_model_is_named_before_anything_starts(tmp_path: Path):
    registry = save_models(tmp_path)
    (tmp_path / "conv" / "1" / "theta.safetensors").write_bytes(b"no theta")
    with pytest.raises(RegistryError, match=r"conv/1/theta\.safetensors"):
        Engine(registry, Settings(device="cpu"))


def test_a_transductive_model_is_refused_by_name(tmp_path: Path):
    registry = save_models(tmp_path)
    network = {"name": "conv", "filters": 8, "blocks": 2, "norm": "batch"}
    save_model(registry, ModelKey("conv", 2), network, shape=(1, 12, 12))
    message = r'conv version 2 cannot be served.*other queries in the batch.*norm = "group"'
    with pytest.raises(RegistryError, match=message):
        Engine(registry, Settings(device="cpu"))


def test_a_model_of_regression_is_refused_by_name(tmp_path: Path):
    registry = save_models(tmp_path)
    network = {"name": "mlp", "hidden": [16]}
    sine = ModelKey("sine", 1)
    save_model(registry, sine, network, head="linear-1", shape=(1,), task="regression")
    with pytest.raises(
        RegistryError, match="sine version 1 cannot be served, models of regression"
    ):
        Engine(registry, Settings(device="cpu"))


def test_models_with_rates_for_the_head_alone_or_for_every_number_are_served(tmp_path: Path):
    registry = Registry(tmp_path)
    keys = [ModelKey("anil", 1), ModelKey("meta-sgd", 1)]
    network = {"name": "mlp", "hidden": [16]}

    def of_head(name: str, _: torch.Tensor) -> torch.Tensor | None:
        return torch.tensor([0.1]) if name.startswith("head.") else None

    def of_each(_: str, value: torch.Tensor) -> torch.Tensor:
        return torch.linspace(-0.01, 0.1, value.numel()).reshape(1, *value.shape)

    for key, rates in zip(keys, (of_head, of_each), strict=True):
        save_model(registry, key, network, shape=SHAPES[DEEP], rates=rates)
    engine = start(Engine(registry, Settings(device="cpu", max_support=16, max_classes=8)))
    try:
        for key in keys:
            work = replace(problem(3, [2, 1, 3], model=DEEP), model=key)
            want = plain(registry.load(key.name, 1), work)
            got = answer(engine, key.name, work)
            np.testing.assert_allclose(
                got.answers.probabilities, want.answers.probabilities, atol=1e-5
            )
            np.testing.assert_allclose(got.support_loss, want.support_loss, atol=1e-5)
    finally:
        engine.stop(SECONDS)


def test_an_engine_without_models_is_ready_and_serves_none(tmp_path: Path):
    engine = start(Engine(Registry(tmp_path / "nowhere"), Settings(device="cpu")))
    assert engine.card(CONV) is None
    engine.stop(SECONDS)
