from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from app.engine import Engine, ModelKey, compute
from app.engine import engine as engine_module
from app.engine.shapes import Sharing
from app.registry import LoadedModel, Registry
from app.settings import Settings
from tests.replays import replay
from tests.unit.engine.helpers import (
    CALIBRATION,
    CONV,
    DEEP,
    FIXED,
    NEWER,
    SECONDS,
    SHAPES,
    SHARED,
    Device,
    save_model,
    save_models,
    start,
)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list]:
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def two(tmp_path: Path) -> Registry:
    """An older version of one model, and a newer one."""
    registry = Registry(tmp_path)
    network = {"name": "conv", "filters": 8, "blocks": 2, "groups": 2}
    for key in (CONV, NEWER):
        facts = {"shape": SHAPES[CONV], "calibration": CALIBRATION, "seed": 6 + key.version}
        save_model(registry, key, network, **facts)
    return registry


@pytest.fixture(scope="session")
def models(registry: Registry) -> dict[ModelKey, LoadedModel]:
    return {key: registry.load(key.name, key.version) for key in (CONV, DEEP, FIXED)}


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def sharing() -> Sharing:
    """How tasks share the device of the engines that `build` makes."""
    return SHARED


@pytest.fixture
def build(
    registry: Registry, device: Device, sharing: Sharing, monkeypatch
) -> Iterator[Callable[..., Engine]]:
    """Makes engines with small limits, not started, whose device obeys `device`."""
    device.steer(monkeypatch)
    for module in (compute, engine_module):
        monkeypatch.setattr(module, "sharing_of", lambda *_: sharing)
    if sharing.least == 1:
        replay(monkeypatch)
    engines = []

    def build(*, of: Registry = registry, **limits) -> Engine:
        small = {"max_support": 16, "max_classes": 8, "batch_limit": 8, "queue_limit": 64}
        engines.append(Engine(of, Settings(device="cpu", **(small | limits))))
        return engines[-1]

    yield build
    device.gate.set()
    for engine in engines:
        engine.stop(SECONDS)


@pytest.fixture
def running(build) -> Callable[..., Engine]:
    """Makes engines that are ready."""
    return lambda **limits: start(build(**limits))
