"""What is run as a graph of operators is what Python computes operation by operation."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine import Engine, ModelKey, alone
from app.engine.compute import Computer
from app.engine.graphs import Graphs, Program, Run, compiled, trace
from app.engine.requests import SupportSet
from app.recordings import CannotRecord
from app.registry import InputSpec, Registry
from app.settings import Settings
from tests.unit.engine.helpers import CALIBRATION, SECONDS, save_model, start, wait_until

KEY = ModelKey("model", 1)
PICTURE, NUMBERS = (1, 12, 12), (5,)
CONV = {"name": "conv", "filters": [4, 6], "blocks": 2, "groups": 2}
MLP = {"name": "mlp", "hidden": [9]}
STANDARDISED = InputSpec(kind="values", shape=NUMBERS, mean=(0.5,) * 5, scale=(2.0,) * 5)

MODELS = {
    "conv": (CONV, PICTURE, {}),
    "conv, calibrated": (CONV, PICTURE, {"calibration": CALIBRATION}),
    "pooling": (CONV | {"downsample": "pool", "readout": "mean"}, PICTURE, {}),
    "plain features": (CONV | {"feature_norm": False, "strides": [1, 2]}, PICTURE, {}),
    "mlp": (MLP, NUMBERS, {}),
    "mlp, calibrated": (MLP, NUMBERS, {"calibration": CALIBRATION}),
    "a warm inner loss": (MLP, NUMBERS, {"inner_temperature": 5.0}),
    "one step": (MLP, NUMBERS, {"steps": 1}),
    "rows of its own": (MLP, NUMBERS, {"head": "fixed-3"}),
    "standardised": (MLP, NUMBERS, {"input": STANDARDISED, "calibration": CALIBRATION}),
    "a rate for each number": (
        MLP,
        NUMBERS,
        {"rates": lambda _, value: torch.full((3, *value.shape), 0.05)},
    ),
    "a frozen network": (
        CONV,
        PICTURE,
        {"rates": lambda name, _: torch.full((3,), 0.1) if name.startswith("head.") else None},
    ),
}
SHOTS = [[1, 1], [1, 2, 1], [7, 1, 5], [1] * 13, [2] * 11, [3] * 40]


@pytest.fixture(autouse=True)
def graphs(monkeypatch) -> Graphs:
    """Graphs of the test's own."""
    monkeypatch.setattr(alone, "GRAPHS", Graphs())
    return alone.GRAPHS


def computer(registry: Registry, key: ModelKey = KEY) -> Computer:
    return Computer(registry.load(key.name, key.version), torch.device("cpu"), 64, 1)


def support_of(shots: list[int], shape: tuple[int, ...]) -> SupportSet:
    rng = np.random.default_rng(len(shots))
    labels = rng.permutation(np.repeat(np.arange(len(shots)), shots))
    return SupportSet(rng.random((len(labels), *shape), np.float32), labels, len(shots))


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_gives_what_python_gives_for_tasks_of_any_size(tmp_path, graphs, monkeypatch, name):
    network, shape, facts = MODELS[name]
    registry = Registry(tmp_path)
    save_model(registry, KEY, network, **{"shape": shape, **facts})
    one = computer(registry)
    one.record()
    recorded = dict(graphs._programs)
    assert {what[0] for what in recorded} == {"adapt", "answer"}
    steps, rng = one.card.steps, np.random.default_rng(0)
    for shots in SHOTS if name != "rows of its own" else [[1, 2, 1], [7, 1, 5]]:
        support = support_of(shots, shape)
        queries = [rng.random((count, *shape), np.float32) for count in (1, 2, 17, 300)]

        def answered(support=support, queries=queries) -> list:
            phi, losses, at_once = one.alone.adapt(support, steps, queries)
            pairs = [*at_once, *one.alone.answer(phi, queries)]
            return [phi.vector, losses, *(tensor for pair in pairs for tensor in pair)]

        with torch.no_grad():
            for _ in range(2):  # torch makes more of a graph once it has run
                by_graph = answered()
            with monkeypatch.context() as patch:
                patch.setattr(graphs, "_programs", {})
                by_python = answered()
        for got, want in zip(by_graph, by_python, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert graphs._programs == recorded, "a graph failed"


def test_another_number_of_steps_is_computed_by_python(tmp_path, graphs):
    registry = Registry(tmp_path)
    save_model(registry, KEY, MLP, shape=NUMBERS)
    one = computer(registry)
    one.record()
    with torch.no_grad():
        _, losses, _ = one.alone.adapt(support_of([2, 2], NUMBERS), 5)
    assert len(losses) == 6


def other_rates(name: str, _: torch.Tensor) -> torch.Tensor:
    return torch.tensor([0.3, 0.2, 0.1]) * (1.0 if name.startswith("head.") else 0.1)


def test_versions_of_one_kind_share_graphs_and_each_answers_by_its_own_numbers(
    tmp_path, graphs, monkeypatch
):
    registry = Registry(tmp_path)
    save_model(registry, KEY, MLP, shape=NUMBERS, calibration=CALIBRATION)
    computer(registry).record()
    recorded = dict(graphs._programs)
    colder = CALIBRATION.model_copy(update={"temperature": (0.1, 0.1, 0.1)})
    other = ModelKey("model", 2)
    save_model(registry, other, MLP, shape=NUMBERS, calibration=colder, seed=8, rates=other_rates)
    one = computer(registry, other)
    one.record()
    assert graphs._programs == recorded
    query = np.random.default_rng(1).random((4, *NUMBERS), np.float32)

    def answered() -> list[torch.Tensor]:
        with torch.no_grad():
            phi, losses, [answers] = one.alone.adapt(support_of([2, 3], NUMBERS), 3, [query])
            return [phi.vector, losses, *answers]

    by_graph = answered()
    monkeypatch.setattr(graphs, "_programs", {})
    for got, want in zip(by_graph, answered(), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "facts",
    [
        {"inner_temperature": 2.0},
        {"steps": 2},
        {"head": "fixed-3"},
        {"calibration": CALIBRATION},
        {"input": STANDARDISED},
        {"rates": lambda name, _: torch.ones(3) if name.startswith("head.") else None},
        {"rates": lambda _, value: torch.ones(3, *value.shape)},
    ],
    ids=["temperature", "steps", "head", "calibrated", "standardised", "frozen", "each number"],
)
def test_versions_of_another_kind_have_graphs_of_their_own(tmp_path, graphs, facts):
    registry = Registry(tmp_path)
    save_model(registry, KEY, MLP, shape=NUMBERS)
    computer(registry).record()
    before = {what for what in graphs._programs if what[0] == "adapt"}
    save_model(registry, ModelKey("model", 2), MLP, shape=NUMBERS, **facts)
    computer(registry, ModelKey("model", 2)).record()
    assert len({what for what in graphs._programs if what[0] == "adapt"} - before) == 1


def test_two_that_record_at_once_leave_torch_as_it_was(tmp_path, graphs, logs):
    registry, modules = Registry(tmp_path), torch.nn.Module
    before = modules.__call__, modules.__getattr__
    for version, hidden in ((1, 6), (2, 7), (3, 8)):
        network = {"name": "mlp", "hidden": [hidden]}
        save_model(registry, ModelKey("model", version), network, shape=NUMBERS)
    computers = [computer(registry, ModelKey("model", version)) for version in (1, 2, 3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Computer.record, computers))
    assert (modules.__call__, modules.__getattr__) == before
    assert len(graphs._programs) == 6
    assert logs == []


def test_an_error_while_recording_is_named_and_python_computes(tmp_path, monkeypatch, logs):
    def broken(self) -> None:
        raise KeyError("anything")

    monkeypatch.setattr(alone.Alone, "record", broken)
    registry = Registry(tmp_path)
    save_model(registry, KEY, MLP, shape=NUMBERS)
    engine = Engine(registry, Settings(device="cpu", max_support=8, max_classes=4))
    try:
        start(engine)
        work = support_of([1, 1], NUMBERS)
        assert len(engine.adapt(KEY, "key", work, 3, None).result(SECONDS).support_loss) == 4
    finally:
        engine.stop(SECONDS)
    said = [entry for entry in logs if entry["event"] == "answers take longer than they could"]
    assert [entry["reason"] for entry in said] == ["'anything'"]


def test_a_network_of_ones_own_is_computed_by_python(tmp_path, graphs):
    registry = Registry(tmp_path)
    network = {"name": "tests.unit.engine.test_graphs:own_network", "features": 4}
    save_model(registry, KEY, network, shape=NUMBERS)
    computer(registry).record()
    assert graphs._programs == {}


def own_network(shape: tuple[int, ...], features: int) -> torch.nn.Module:
    return torch.nn.Linear(*shape, features)


def test_the_newest_version_is_recorded_when_an_engine_is_ready_and_others_once_asked_for(
    tmp_path: Path, graphs
):
    registry = Registry(tmp_path)
    for version, hidden in ((1, 8), (2, 9)):
        network = {"name": "mlp", "hidden": [hidden]}
        save_model(registry, ModelKey("model", version), network, shape=NUMBERS)
    engine = Engine(registry, Settings(device="cpu", max_support=8, max_classes=4))

    def recorded(hidden: int) -> int:
        return sum(f"('hidden', [{hidden}])" in what[-1] for what in graphs._programs)

    try:
        start(engine)
        assert (recorded(8), recorded(9)) == (0, 2)
        engine.adapt(ModelKey("model", 1), "old", support_of([1, 1], NUMBERS), 3, None)
        wait_until(lambda: recorded(8) == 2)
    finally:
        engine.stop(SECONDS)
    assert not engine._recorder.thread.is_alive()


def double(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [2 * each for each in rows]


def record(graphs: Graphs, what: str, compute: Run, inputs: Sequence[torch.Tensor]) -> None:
    """A program that is one graph, of inputs of any number of rows."""

    def make() -> list[Program]:
        traced = trace(compute, inputs, range(len(inputs)))
        [run] = compiled(traced.function("run"), ["run"])
        return [lambda given: run([*traced.kept, *given])]

    graphs.record([what], make)


def test_what_else_is_read_is_kept_as_it_was():
    graphs, kept = Graphs(), torch.tensor([1.0, 2.0])
    record(graphs, "shift", lambda rows: [rows + kept, rows * float("inf")], [torch.ones(3, 2)])
    (shifted, infinite) = graphs.run("shift", double, [torch.zeros(5, 2) + 1])
    assert shifted.tolist() == [[2.0, 3.0]] * 5
    assert infinite.tolist() == [[float("inf")] * 2] * 5


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda rows: [rows.expand(len(rows), 2) * 1], "for other sizes"),
        (lambda rows: [rows * (2 if rows.sum() > 0 else 3)], "cannot be traced"),
    ],
    ids=["a size as a number", "a value as a number"],
)
def test_what_hangs_on_a_size_or_a_value_cannot_be_recorded(compute, reason):
    graphs = Graphs()
    with pytest.raises(CannotRecord, match=reason):
        record(graphs, "name", compute, [torch.ones(3, 2)])
    assert graphs.run("name", double, [torch.ones(1)])[0].item() == 2


def test_a_graph_that_fails_with_what_it_computes_is_kept(logs):
    def fails(*_: torch.Tensor) -> list[torch.Tensor]:
        raise RuntimeError("no memory")

    graphs = Graphs()
    record(graphs, "sum", lambda a, b: [a + b], [torch.ones(3), torch.ones(3)])
    with pytest.raises(RuntimeError, match="no memory"):
        graphs.run("sum", fails, [torch.ones(2), torch.ones(5)])
    assert graphs.run("sum", fails, [torch.ones(2), torch.ones(2)])[0].tolist() == [2, 2]
    assert logs == []


def test_what_is_no_torchscript_cannot_be_recorded():
    with pytest.raises(CannotRecord, match="no TorchScript"):
        compiled("def run(given: List[Tensor]):\n    return nothing\n", ["run"])


def test_a_graph_that_fails_is_dropped_and_named(logs):
    def totals(given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.stack([each.sum() for each in given]).sum()]

    graphs = Graphs()
    record(graphs, "sum", lambda a, b: [a + b], [torch.ones(3), torch.ones(3)])
    for _ in range(2):
        [total] = graphs.run("sum", totals, [torch.ones(2), torch.ones(5)])
        assert total.item() == 7
    assert [entry["event"] for entry in logs] == ["a graph of operators failed and is dropped"]
