"""The published table: what is committed belongs together, and the verdicts are right."""

import hashlib
import json

import pytest

from app.registry import Registry
from app.training.recipe import Stage, load_recipe
from benchmarks.paper.report import markdown, verdict
from benchmarks.paper.results import RESULTS, read_results
from benchmarks.paper.rows import HERE, MODELS, Row, load_rows

ROWS = load_rows()
ACCURACY = Row(
    dataset="omniglot",
    ways=5,
    shots=1,
    queries=1,
    tasks=600,
    algorithm="maml",
    protocol="transductive",
    model="any",
    asked=98.7,
)


def test_the_report_is_what_the_results_give():
    written = (HERE / "RESULTS.md").read_text(encoding="utf-8")
    assert markdown(ROWS, read_results()) == written


def test_every_result_is_of_a_row_and_of_the_theta_that_is_kept():
    keys = {row.key: row for row in ROWS}
    assert len(keys) == len(ROWS)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert results
    assert set(read_results()) <= set(keys)
    for key, result in read_results().items():
        model = Registry(MODELS).load(keys[key].model, 1)  # checks θ against its card
        assert result["theta_sha256"] == model.card.theta_sha256
        theta = (keys[key].folder / "1" / "theta.safetensors").read_bytes()
        assert hashlib.sha256(theta).hexdigest() == result["theta_sha256"]
        assert (result["queries"], result["tasks"]) == (keys[key].queries, keys[key].tasks)
        assert result["iterations"] == model.card.iterations


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(map(str, row.key)))
def test_every_row_has_a_recipe_of_its_algorithm_and_protocol(row):
    recipe = load_recipe(row.folder / "recipe.toml")
    assert recipe.name == row.model
    assert recipe.data.distribution == row.dataset
    batch_norm = recipe.network.model_dump().get("norm") == "batch"
    assert row.protocol == ("transductive" if batch_norm else "inductive")
    algorithms = {
        stage.algorithm if isinstance(stage, Stage) else "pretraining" for stage in recipe.stages
    }
    expected = {"nearest-class-mean": "maml"}.get(row.algorithm, row.algorithm)
    if row.dataset == "sinusoid" and row.algorithm != "maml":
        expected = "pretraining-on-tasks"
    assert algorithms == {expected}


@pytest.mark.parametrize(
    ("accuracy", "above", "expected"),
    [(98.7, False, "reached"), (98.69, False, "short"), (98.7, True, "short")],
)
def test_a_row_is_reached_or_short(accuracy, above, expected):
    row = ACCURACY.model_copy(update={"above": above})
    assert verdict(row, {"accuracy": accuracy}) == expected


def test_a_row_of_the_sinusoid_must_do_at_every_step_what_is_asked():
    row = ACCURACY.model_copy(update={"asked": None, "asked_mse": (0.67, 0.38, 0.35)})
    by_step = [3.0, 0.6, 0.5, 0.5, 0.5, 0.38, 0.4, 0.4, 0.4, 0.4, 0.35]
    assert verdict(row, {"mse_by_step": by_step}) == "reached"
    assert verdict(row, {"mse_by_step": [*by_step[:5], 0.381, *by_step[6:]]}) == "short"


def test_a_row_without_a_result_says_so():
    assert verdict(ACCURACY, None) == "not measured"
    assert "not measured" in markdown([ACCURACY], {})
