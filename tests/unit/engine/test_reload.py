"""New versions are taken in while the old ones are served."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.engine import Engine, ModelKey
from app.engine.answering import Answering
from app.engine.compute import Computer
from app.engine.shapes import ON_CPU
from app.errors import NotReady
from app.registry import Registry
from app.settings import Settings
from tests.unit.engine.helpers import (
    CALIBRATION,
    DEEP,
    SECONDS,
    SHAPES,
    answer,
    plain,
    problem,
    save_model,
    save_models,
    start,
    submit,
    wait_until,
)

NEW = ModelKey("deep", 3)
NETWORK = {"name": "mlp", "hidden": [24]}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry of the test's own, which it may add to."""
    return save_models(tmp_path / "models")


@pytest.fixture
def engine(registry: Registry, device, monkeypatch) -> Iterator[Engine]:
    device.steer(monkeypatch)
    settings = Settings(device="cpu", max_support=16, max_classes=8, batch_limit=8, queue_limit=4)
    engine = start(Engine(registry, settings))
    yield engine
    device.gate.set()
    engine.stop(SECONDS)


def add(registry: Registry, key: ModelKey = NEW, network: dict = NETWORK, **facts) -> None:
    save_model(registry, key, network, shape=SHAPES[DEEP], **facts)


def check_answers(engine: Engine, registry: Registry, key: ModelKey) -> None:
    work = replace(problem(4, [2, 1], model=DEEP), model=key)
    got = answer(engine, f"check {key}", work).answers.probabilities
    want = plain(registry.load(key.name, key.version), work).answers.probabilities
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def left_out(logs: list[dict]) -> list[str]:
    return [entry["folder"] for entry in logs if entry["event"] == "a version is left out"]


def close(monkeypatch, *folders: Path) -> None:
    """What permissions do to anybody but root, who may be running this."""
    stat, iterdir, access = Path.stat, Path.iterdir, os.access

    def checked_stat(path: Path, **options):
        if path.parent in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    def checked_iterdir(path: Path):
        if path in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "stat", checked_stat)
    monkeypatch.setattr(Path, "iterdir", checked_iterdir)
    monkeypatch.setattr(os, "access", lambda path, mode: path not in folders and access(path, mode))


def test_a_new_version_and_a_new_model_are_served_after_a_reload_and_not_before(engine, registry):
    add(registry)
    add(registry, ModelKey("other", 1))
    for key in (NEW, ModelKey("other", 1)):
        assert engine.card(key) is None
        work = problem(0, [1, 1], model=DEEP)
        with pytest.raises(NotReady, match="does not hold"):
            engine.adapt(key, "early", work.support, 1, None)
    engine.reload()
    for key in (NEW, ModelKey("other", 1), DEEP):
        assert engine.card(key) is not None
        check_answers(engine, registry, key)


def test_a_reload_without_anything_new_does_nothing(engine, monkeypatch):
    monkeypatch.setattr(Computer, "warm", lambda *_: pytest.fail("it warmed up"))
    engine.reload()
    assert engine.ready


def test_requests_are_answered_between_the_batches_of_a_warm_up(engine, registry, monkeypatch):
    add(registry)
    asked, in_turn, predict = [], [], Computer.predict

    def ask_meanwhile(computer, requests):
        if computer.card.version == NEW.version:  # the lane is in the middle of the warm-up
            in_turn.append(all(future.running() or future.done() for future in asked))
            asked.append(submit(engine, f"meanwhile {len(asked)}", problem(1, [1, 1])))
        return predict(computer, requests)

    with monkeypatch.context() as patch:
        patch.setattr(Computer, "predict", ask_meanwhile)
        engine.reload()
    assert len(in_turn) > 2
    assert all(in_turn), "a batch of the warm-up went before a request that was there first"
    for future in asked:
        future.result(SECONDS)
    check_answers(engine, registry, NEW)


def test_a_version_is_not_served_before_all_of_it_is_warm(engine, registry, monkeypatch):
    add(registry)
    warm, served = Computer.warm, []

    def watched(computer, max_support):
        for do in warm(computer, max_support):
            served.append(engine.card(NEW) is not None)
            yield do

    monkeypatch.setattr(Computer, "warm", watched)
    engine.reload()
    assert len(served) > 2
    assert not any(served)
    assert engine.card(NEW) is not None


def test_a_full_queue_does_not_keep_a_new_version_out(engine, registry, device):
    add(registry)
    device.hold(engine)
    waiting = [submit(engine, f"waits:{number}", problem(2, [1, 1])) for number in range(4)]
    with ThreadPoolExecutor(1) as aside:
        reload = aside.submit(engine.reload)
        wait_until(lambda: engine.stats()["queue_length"] == 5)
        device.gate.set()
        reload.result(SECONDS)
    assert all(future.result(SECONDS) for future in waiting)
    assert engine.card(NEW) is not None


def break_card(folder: Path) -> None:
    (folder / "card.json").write_text("{")


def break_theta(folder: Path) -> None:
    path = folder / "theta.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def lose_theta(folder: Path) -> None:
    (folder / "theta.safetensors").unlink()


@pytest.mark.parametrize("damage", [break_card, break_theta, lose_theta])
def test_a_broken_version_is_logged_with_its_folder_and_changes_nothing(
    engine, registry, logs, damage
):
    add(registry)
    damage(registry.folder("deep", 3))
    add(registry, ModelKey("other", 1))
    engine.reload()
    assert left_out(logs) == [str(registry.folder("deep", 3))]
    assert engine.card(NEW) is None
    assert engine.ready
    for key in (DEEP, ModelKey("other", 1)):
        check_answers(engine, registry, key)


def test_a_model_that_cannot_be_served_is_left_out(engine, registry, logs):
    add(registry, ModelKey("sine", 1), head="linear-1", task="regression")
    engine.reload()
    assert left_out(logs) == [str(registry.folder("sine", 1))]
    assert engine.card(ModelKey("sine", 1)) is None


def test_versions_that_fail_on_the_device_leave_it_working(engine, registry, logs, monkeypatch):
    for version in range(3, 8):
        add(registry, ModelKey("deep", version))
    adapt = Computer.adapt

    def failing(computer, *arguments, **named):
        if computer.card.version >= NEW.version:
            raise RuntimeError("out of memory")
        return adapt(computer, *arguments, **named)

    monkeypatch.setattr(Computer, "adapt", failing)
    engine.reload()
    assert len(left_out(logs)) == 5
    assert engine.ready
    assert engine.stats()["batch_failures_total"] == 0
    check_answers(engine, registry, DEEP)


def test_a_version_that_was_left_out_is_taken_in_once_it_is_whole(engine, registry):
    add(registry)
    path = registry.folder("deep", 3) / "theta.safetensors"
    whole = path.read_bytes()
    break_theta(path.parent)
    engine.reload()
    assert engine.card(NEW) is None
    path.write_bytes(whole)
    engine.reload()
    assert engine.card(NEW) is not None


def test_a_version_that_was_replaced_answers_by_the_theta_on_disk(engine, registry):
    before = registry.card("deep", 2).theta_sha256
    shutil.rmtree(registry.folder("deep", 2))
    add(registry, DEEP)
    after = registry.card("deep", 2).theta_sha256
    assert engine.card(DEEP).theta_sha256 == before
    assert engine.card(DEEP).theta_sha256 != after
    engine.reload()
    assert engine.card(DEEP).theta_sha256 == after
    assert engine.card(DEEP).theta_sha256 != before
    check_answers(engine, registry, DEEP)


def test_a_version_that_is_gone_is_dropped_named_and_taken_in_again(
    engine, registry, logs, tmp_path
):
    folder = registry.folder("deep", 2)
    folder.rename(tmp_path / "away")
    engine.reload()
    engine.reload()
    gone = [entry for entry in logs if entry["event"] == "a version is gone"]
    assert [(entry["model"], entry["version"]) for entry in gone] == [("deep", 2)]
    assert engine.card(DEEP) is None
    (tmp_path / "away").rename(folder)
    engine.reload()
    check_answers(engine, registry, DEEP)


def test_what_is_cached_is_read_alike_by_a_version_that_is_taken_in_again(
    engine, registry, monkeypatch
):
    load = Registry.load

    def in_another_order(self, name: str, version: int):
        model = load(self, name, version)
        return replace(model, theta=dict(reversed(model.theta.items())))

    work = problem(4, [2, 1], model=DEEP)
    before = answer(engine, "kept", work).answers.probabilities
    monkeypatch.setattr(Registry, "load", in_another_order)
    held = engine._computers[DEEP]
    registry.rewrite(registry.card("deep", 2).model_copy(update={"description": "Another."}))
    engine.reload()
    assert engine._computers[DEEP] is not held
    after = engine.predict(DEEP, "kept", work.query).result(SECONDS).probabilities
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


def test_what_is_cached_is_answered_by_a_calibration_that_was_fitted_anew(
    engine, registry, monkeypatch
):
    work = problem(4, [2, 1], model=DEEP)
    assert answer(engine, "kept", work).answers.outlier is None
    registry.rewrite(registry.card("deep", 2).model_copy(update={"calibration": CALIBRATION}))
    engine.reload()
    got = engine.predict(DEEP, "kept", work.query).result(SECONDS)
    with monkeypatch.context() as patch:
        patch.setattr(Answering, "ready", lambda *_: pytest.fail("φ was made ready again"))
        again = engine.predict(DEEP, "kept", work.query).result(SECONDS)
    np.testing.assert_array_equal(again.probabilities, got.probabilities)
    want = plain(registry.load("deep", 2), work).answers
    np.testing.assert_allclose(got.probabilities, want.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.outlier, want.outlier, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sharing", [ON_CPU])
@pytest.mark.parametrize("shape", [(5,), (7,)], ids=["the same inputs", "other inputs"])
def test_requests_that_wait_while_their_version_is_replaced_are_answered_by_the_old_one(
    build, registry, device, shape
):
    engine = start(build(queue_limit=64))
    old, work = registry.load("deep", 2), problem(4, [2, 1], model=DEEP)
    held = device.hold(engine)
    # Warming up takes turns with them: they are more than it has shapes.
    waiting = [submit(engine, f"waits {number}", work) for number in range(40)]
    shutil.rmtree(registry.folder("deep", 2))
    save_model(registry, DEEP, NETWORK, shape=shape)
    with ThreadPoolExecutor() as pool:
        reloading = pool.submit(engine.reload)
        wait_until(lambda: engine.stats()["queue_length"] > 40)
        device.gate.set()
        for future in [held, *waiting]:
            future.result(SECONDS)
        reloading.result(SECONDS)
    want = plain(old, work).answers.probabilities
    for future in waiting:
        np.testing.assert_allclose(future.result().answers.probabilities, want, rtol=0, atol=1e-5)
    assert engine.ready
    assert engine.card(DEEP).theta_sha256 == registry.card("deep", 2).theta_sha256


def test_folders_that_are_closed_to_us_are_named_and_keep_nothing_else_out(
    engine, registry, logs, monkeypatch
):
    add(registry)
    add(registry, ModelKey("other", 1))
    add(registry, ModelKey("zeta", 1))
    closed = [registry.root / "other", registry.folder("deep", 3)]
    close(monkeypatch, *closed)
    engine.reload()
    assert left_out(logs) == [str(closed[1])]
    assert [e["folder"] for e in logs if e["event"] == "a model is left out"] == [str(closed[0])]
    check_answers(engine, registry, ModelKey("zeta", 1))
    assert engine.card(ModelKey("other", 1)) is None


def test_warming_up_counts_as_no_request(engine, registry):
    add(registry)
    before = engine.stats()
    engine.reload()
    assert engine.stats() == before


def call_at(moment: str, do: Callable[[], None], monkeypatch) -> None:
    """Does something at the first warm-up of a new version."""
    warm, once = getattr(Computer, moment), threading.Lock()

    def wrapped(computer, *arguments):
        if once.acquire(blocking=False):
            do()
        return warm(computer, *arguments)

    monkeypatch.setattr(Computer, moment, wrapped)


def test_an_engine_that_is_stopped_takes_in_nothing_more(engine, registry, logs, monkeypatch):
    add(registry)
    call_at("warm", lambda: engine.stop(SECONDS), monkeypatch)
    engine.reload()
    assert engine.card(NEW) is None
    assert left_out(logs) == []


def test_what_comes_during_a_reload_is_taken_in_by_the_next(engine, registry, monkeypatch):
    add(registry)
    more = ModelKey("aa", 1)
    with ThreadPoolExecutor(1) as aside:
        asked = []

        def ask_again() -> None:
            add(registry, more)  # before "deep", where this reload has looked already
            asked.append(aside.submit(engine.reload))

        call_at("warm", ask_again, monkeypatch)
        engine.reload()
        asked[0].result(SECONDS)
    assert engine.card(NEW) is not None
    assert engine.card(more) is not None


def test_models_are_read_again_while_the_engine_still_warms_up(registry, device):
    settings = Settings(device="cpu", max_support=16, max_classes=8, batch_limit=8)
    engine = Engine(registry, settings)
    add(registry)
    engine.start()
    try:
        engine.reload()
        assert engine.ready
        assert engine.card(NEW) is not None
        check_answers(engine, registry, NEW)
    finally:
        engine.stop(SECONDS)
