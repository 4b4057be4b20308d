"""The benchmark of adaptations compares what is the same, and says so where it is not."""

from dataclasses import replace

import pytest
import torch

for peer in ("higher", "torchopt"):
    pytest.importorskip(peer, reason=f"{peer} is not installed: make bench")

from app.engine import ModelKey  # noqa: E402 - after the skip
from app.registry import Registry  # noqa: E402
from benchmarks import adaptation  # noqa: E402
from tests.unit.engine.helpers import CALIBRATION, save_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("models")
    network = {"name": "conv", "filters": 8, "blocks": 2, "groups": 2}
    key = ModelKey(adaptation.MODEL, 1)
    save_model(Registry(path), key, network, shape=(1, 12, 12), calibration=CALIBRATION)
    return path


def test_every_peer_answers_as_the_engine_does_and_all_are_timed(folder):
    sizes = [(3, 1), (4, 2)]
    rows = adaptation.measure(
        folder, CPU, with_peers=True, seconds=0.1, sizes=sizes, concurrency=(1, 5)
    )
    assert [(row.ways, row.shots, row.concurrency) for row in rows] == [
        (*size, level) for size in sizes for level in (1, 5)
    ]
    for row in rows:
        assert set(row.peers_per_s) == {"autograd", "higher", "torchopt"}
        assert min(*row.peers_per_s.values(), row.engine_per_s) > 0
        assert row.p50_ms <= row.p99_ms
        assert row.largest_difference < adaptation.TOLERANCE


def test_an_answer_of_other_rates_is_told_by_name(folder, monkeypatch):
    right = adaptation.serving_of

    def wrong(*arguments):
        serving = right(*arguments)
        rates = [{name: 2 * rate for name, rate in step.items()} for step in serving.rates]
        return replace(serving, rates=rates)

    monkeypatch.setattr(adaptation, "serving_of", wrong)
    with pytest.raises(adaptation.Disagreement, match="autograd differs from the engine by"):
        adaptation.measure(
            folder, CPU, with_peers=True, seconds=0.1, sizes=[(3, 1)], concurrency=(1,)
        )
