"""The bundled model on the real test characters."""

from pathlib import Path

import pytest
import torch

from app.data.omniglot import load_omniglot
from app.data.pools import data_digest
from app.registry import Registry
from app.training.measure import measure_model
from app.training.recipe import Measure
from tests.unit.training.helpers import Recorder

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="module")
def card():
    if 1 not in Registry(MODELS).versions("omniglot"):
        pytest.skip(f"there is no {MODELS / 'omniglot' / '1'}")
    return Registry(MODELS).card("omniglot", 1)


def test_the_bundled_model_is_as_accurate_as_its_card_says(omniglot_folder, card):
    tasks = 20
    got = measure_model(
        MODELS / "omniglot" / "1",
        Measure(ways=5, shots=1, queries=15, tasks=tasks),
        pool="test",
        steps=0,
        seed=77,
        data_root=omniglot_folder,
        default_root=Path("nowhere"),
        device=torch.device("cpu"),
        reporter=Recorder(),
    )
    said = next(figure for figure in card.figures if (figure.ways, figure.shots) == (5, 1))
    low, high = said.confidence_interval_95
    of_twenty = (high - low) / 2 * (said.tasks / tasks) ** 0.5
    assert got.accuracy == pytest.approx(said.accuracy, abs=2.5 * of_twenty)
    assert got.accuracy_by_step[0] == pytest.approx(20, abs=5), "by chance"
    assert len(got.accuracy_by_step) == card.steps + 1


def test_the_card_names_these_very_pictures(omniglot_folder, card):
    pools = load_omniglot(omniglot_folder, card.recipe["data"]["split"])
    assert data_digest(pools) == card.data_digest
