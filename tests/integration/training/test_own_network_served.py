"""From an .npz file to answers: a network of somebody's own, trained, loaded and served."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from app.engine import Engine, ModelKey, SupportSet
from app.registry import LoadedModel, Registry
from app.settings import Settings
from app.training import job
from tests.unit.learning.own_networks import Good
from tests.unit.training.helpers import Recorder, recipe
from tests.unit.training.test_arrays import TEXT, write_series

SHOTS = (3, 1, 2)
SECONDS = 60


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    """A model of series, trained for a few iterations."""
    folder = tmp_path_factory.mktemp("served")
    job.train(
        recipe(base=TEXT),
        data_dir=write_series(folder),
        run_dir=folder / "run",
        models_dir=folder / "models",
        device=torch.device("cpu"),
        reporter=Recorder(),
    )
    return Registry(folder / "models")


@pytest.fixture
def engine(registry):
    engine = Engine(registry, Settings(device="cpu", max_support=16, max_classes=8, batch_limit=4))
    engine.start()
    yield engine
    engine.stop(SECONDS)


def by_hand(model: LoadedModel, support: SupportSet, query: np.ndarray) -> list[np.ndarray]:
    """Logits of each query alone, by plain torch: the network itself, autograd, and a loop."""
    spec, ways = model.card.input, support.ways
    network = Good(spec.shape, filters=2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(model.theta[f"network.{name}"])
    weight = model.theta["head.weight"].repeat(ways, 1).requires_grad_()
    bias = model.theta["head.bias"].repeat(ways).requires_grad_()
    moving = {f"network.{name}": value for name, value in network.named_parameters()}
    moving |= {"head.weight": weight, "head.bias": bias}

    def logits(inputs: np.ndarray) -> torch.Tensor:
        mean, scale = np.array(spec.mean)[:, None], np.array(spec.scale)[:, None]
        standardised = torch.from_numpy(((inputs - mean) / scale).astype(np.float32))
        return F.linear(network(standardised), weight, bias)

    labels = torch.from_numpy(support.labels)
    each = 1 / (ways * labels.bincount()[labels])
    for step in range(model.card.steps):
        losses = F.cross_entropy(logits(support.inputs), labels, reduction="none")
        gradients = torch.autograd.grad((losses * each).sum(), list(moving.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(moving.items(), gradients, strict=True):
                factor = ways if name.startswith("head.") else 1
                value -= model.alpha[name][step] * factor * gradient
    with torch.no_grad():
        return [logits(one[None])[0].numpy() for one in query]


def wait_until_ready(engine: Engine) -> None:
    for _ in range(SECONDS * 20):
        if engine.ready:
            return
        engine._lanes[0].thread.join(0.05)
    raise AssertionError("the engine is not ready")


def test_the_engine_answers_as_a_plain_loop_of_torch_does(registry, engine, tmp_path: Path):
    model = registry.load("tiny", 1)
    held = np.load(write_series(tmp_path))
    rows = [np.flatnonzero(held["labels"] == label) for label in (2, 7, 11)]
    chosen = np.concatenate([own[:shots] for own, shots in zip(rows, SHOTS, strict=True)])
    inputs = held["inputs"].astype(np.float32)
    support = SupportSet(inputs[chosen], np.repeat(np.arange(3), SHOTS), 3)
    query = inputs[np.concatenate([own[3:5] for own in rows])]
    expected = np.array(by_hand(model, support, query))
    wait_until_ready(engine)
    key = ModelKey("tiny", 1)
    engine.adapt(key, "φ", support, model.card.steps, None).result(SECONDS)
    answers = engine.predict(key, "φ", query).result(SECONDS).probabilities
    # The same up to a temperature, which calibration divides all logits by.
    got = np.log(answers) - np.log(answers).mean(1, keepdims=True)
    expected -= expected.mean(1, keepdims=True)
    temperature = np.abs(expected).sum() / np.abs(got).sum()
    np.testing.assert_allclose(got * temperature, expected, atol=1e-4)
    assert (answers.argmax(1) == np.repeat(np.arange(3), 2)).mean() > 0.5


def test_an_answer_is_the_same_alone_and_among_others(registry, engine, tmp_path: Path):
    inputs = np.load(write_series(tmp_path))["inputs"].astype(np.float32)
    support = SupportSet(inputs[[0, 1, 8, 9]], np.array([0, 0, 1, 1]), 2)
    wait_until_ready(engine)
    key = ModelKey("tiny", 1)
    together = engine.adapt(key, "a", support, 2, inputs[20:27]).result(SECONDS).answers
    alone = [engine.predict(key, "a", inputs[at : at + 1]).result(SECONDS) for at in range(20, 27)]
    singly = np.concatenate([answer.probabilities for answer in alone])
    np.testing.assert_allclose(singly, together.probabilities, atol=1e-5)
