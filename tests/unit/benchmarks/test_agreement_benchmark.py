"""That answers depend on nothing but the request, for the bundled θ and not only for a tiny one."""

from pathlib import Path

import torch

from benchmarks import agreement

MODELS = Path(__file__).parents[3] / "models"
PROMISED = 1e-5


def test_the_bundled_models_answers_differ_by_rounding_alone():
    rows = list(agreement.measure(MODELS, torch.device("cpu"), ((2, 1),), rounds=1))
    assert [row.steps for row in rows] == [3, 10]
    for row in rows:
        assert row.in_company == 0, "a CPU computes each task alone"
        assert row.query_by_query < PROMISED / 2
        assert row.in_another_order < PROMISED / 2
