"""What the engine answers: the inner loop's own numbers, whatever shares the batch."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from app.engine import FIGURES, Engine, ModelKey, PhiMissing, SupportSet
from app.engine.shapes import ON_CPU
from app.errors import NotReady
from app.settings import Settings
from tests.unit.engine.helpers import (
    CALIBRATION,
    CONV,
    DEEP,
    FIXED,
    PADDED,
    SAME,
    SECONDS,
    SHARED,
    Problem,
    answer,
    plain,
    problem,
    rows_of,
    start,
    submit,
    wait_until,
)


@pytest.fixture(scope="module")
def engine(registry) -> Iterator[Engine]:
    """One engine for all tests that leave it as they found it."""
    limits = Settings(
        device="cpu", max_support=64, max_classes=16, batch_limit=16, queue_limit=1000
    )
    engine = start(Engine(registry, limits))
    yield engine
    engine.stop(SECONDS)


SHARINGS = pytest.mark.parametrize(
    "sharing",
    [ON_CPU, SHARED, PADDED],
    ids=["as on a CPU", "several at once", "one padded too, as on a GPU"],
)


def many_problems(count: int, seed: int) -> list[Problem]:
    """Problems of all sizes within the engine's limits, for both models."""
    rng = np.random.default_rng(seed)
    problems = []
    for index in range(count):
        ways = int(rng.integers(2, 17))
        shots = rng.integers(1, 1 + min(6, 64 // ways), size=ways).tolist()
        queries, steps = int(rng.integers(1, 20)), int(rng.integers(1, 4))
        model = (CONV, DEEP)[index % 2]
        problems.append(problem(1000 * seed + index, shots, queries, steps, model))
    return problems


@pytest.mark.parametrize("model", [CONV, DEEP])
@pytest.mark.parametrize(
    "shots",
    [[1, 1], [5, 1, 3], [1] * 5, [7] * 8, [1, 4, 2, 1, 3, 1, 1, 5, 2, 2, 1, 3, 6, 1, 2, 4]],
    ids=["2-way", "3-way ragged", "5-way", "padded to nothing", "16-way ragged"],
)
def test_an_adaptation_is_the_plain_inner_loop(engine, models, model, shots):
    work = problem(1, shots, queries=9, model=model)
    got, want = answer(engine, "plain", work), plain(models[model], work)
    np.testing.assert_allclose(got.answers.probabilities, want.answers.probabilities, **SAME)
    np.testing.assert_allclose(got.support_loss, want.support_loss, rtol=1e-4, atol=1e-5)
    assert got.answers.probabilities.dtype == np.float32
    assert got.answers.probabilities.shape == (9, len(shots))
    np.testing.assert_allclose(got.answers.probabilities.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("shots", [[1, 1], [5, 1, 3], [1, 4, 2, 1, 3, 1, 1, 5, 2]])
def test_a_calibrated_model_says_how_probably_a_query_is_of_no_class(engine, models, shots):
    work = problem(3, shots, queries=70)
    got, want = answer(engine, "outliers", work).answers, plain(models[CONV], work).answers
    assert got.outlier.shape == (70,)
    assert np.ptp(want.outlier) > 0.02, "they are all alike"
    np.testing.assert_allclose(got.outlier, want.outlier, rtol=0, atol=1e-4)
    later = engine.predict(CONV, "outliers", work.query).result(SECONDS)
    np.testing.assert_allclose(later.outlier, want.outlier, rtol=0, atol=1e-4)


def test_a_model_that_is_not_calibrated_says_nothing_of_outliers(engine):
    work = problem(3, [1, 2], model=DEEP)
    assert answer(engine, "uncalibrated", work).answers.outlier is None
    assert engine.predict(DEEP, "uncalibrated", work.query).result(SECONDS).outlier is None


@SHARINGS
@pytest.mark.parametrize("shots", [[1, 1, 1], [4, 1, 8]])
def test_a_head_of_fixed_width_is_served_with_its_own_rows(running, models, shots):
    engine = running()
    work = problem(1, shots, queries=9, model=FIXED)
    got, want = answer(engine, "fixed", work), plain(models[FIXED], work)
    np.testing.assert_allclose(got.answers.probabilities, want.answers.probabilities, **SAME)
    np.testing.assert_allclose(got.support_loss, want.support_loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_support_loss_starts_at_ln_n_and_has_one_more_number_than_steps(engine, models, steps):
    work = problem(2, [1, 3, 2], steps=steps)
    got = answer(engine, "steps", work)
    assert len(got.support_loss) == steps + 1
    assert got.support_loss[0] == pytest.approx(math.log(3), abs=1e-6)
    assert got.support_loss[-1] < got.support_loss[0]
    np.testing.assert_allclose(
        got.answers.probabilities, rows_of(plain(models[CONV], work)), **SAME
    )


@SHARINGS
def test_tasks_of_all_sizes_submitted_at_once_each_get_their_lone_answer(running, models, sharing):
    engine = running(max_support=64, max_classes=16, batch_limit=16)
    problems = many_problems(60, seed=3)
    before = engine.stats()
    futures = [submit(engine, f"crowd:{n}", work) for n, work in enumerate(problems)]
    for work, future in zip(problems, futures, strict=True):
        got, want = future.result(SECONDS), plain(models[work.model], work)
        np.testing.assert_allclose(got.answers.probabilities, want.answers.probabilities, **SAME)
        np.testing.assert_allclose(got.support_loss, want.support_loss, rtol=1e-4, atol=1e-5)
    after = engine.stats()
    assert after["batched_requests_total"] - before["batched_requests_total"] == 60
    batches = after["batches_total"] - before["batches_total"]
    assert batches == 60 if sharing is ON_CPU else batches < 60


def test_an_adaptation_without_a_query_has_no_probabilities_but_keeps_phi(engine):
    work = problem(4, [2, 2])
    got = engine.adapt(CONV, "silent", work.support, 3, None).result(SECONDS)
    assert got.answers is None
    rows = engine.predict(CONV, "silent", work.query).result(SECONDS).probabilities
    np.testing.assert_allclose(rows, rows_of(answer(engine, "asked", work)), **SAME)


def test_no_queries_make_no_rows(engine):
    work = problem(4, [2, 2, 1], queries=0)
    assert rows_of(answer(engine, "none", work)).shape == (0, 3)
    assert engine.predict(CONV, "none", work.query).result(SECONDS).probabilities.shape == (0, 3)


@pytest.mark.parametrize("model", [CONV, DEEP])
def test_a_query_is_answered_alike_alone_and_among_fifty_others(engine, model):
    work = problem(5, [1, 2, 3, 1, 1], queries=51, model=model)
    among = rows_of(answer(engine, "fifty", work))
    for index in (0, 17, 50):
        one = Problem(model, work.support, work.query[index : index + 1])
        alone = engine.predict(model, "fifty", one.query).result(SECONDS).probabilities
        np.testing.assert_allclose(alone[0], among[index], **SAME)
        adapted = rows_of(answer(engine, "again", one))
        np.testing.assert_allclose(adapted[0], among[index], **SAME)


@pytest.mark.parametrize("queries", [1, 4, 5, 16, 17, 64, 65, 130, 300])
def test_any_number_of_queries_is_answered_in_order(engine, models, queries):
    work = problem(6, [1, 2, 1], queries=queries)
    engine.adapt(CONV, "chunks", work.support, 3, None).result(SECONDS)
    rows = engine.predict(CONV, "chunks", work.query).result(SECONDS).probabilities
    np.testing.assert_allclose(rows, rows_of(plain(models[CONV], work)), **SAME)


@SHARINGS
def test_predictions_of_sessions_of_all_sizes_at_once_are_each_their_own(running, models):
    engine = running(max_support=64, max_classes=16, batch_limit=16)
    problems = many_problems(30, seed=7)
    for number, work in enumerate(problems):
        answer(engine, f"own:{number}", work)
    futures = [
        engine.predict(work.model, f"own:{number}", work.query)
        for number, work in enumerate(problems)
    ]
    for work, future in zip(problems, futures, strict=True):
        want = rows_of(plain(models[work.model], work))
        np.testing.assert_allclose(future.result(SECONDS).probabilities, want, **SAME)


@pytest.mark.parametrize("model", [CONV, DEEP])
def test_permuting_the_labels_permutes_the_answers(engine, model):
    work = problem(8, [1, 3, 2, 5, 1], model=model)
    order = np.array([3, 0, 4, 1, 2])  # class c becomes order[c]
    renamed = SupportSet(work.support.inputs, order[work.support.labels], 5)
    rows = rows_of(answer(engine, "before", work))
    permuted = rows_of(answer(engine, "after", Problem(model, renamed, work.query)))
    np.testing.assert_allclose(permuted[:, order], rows, **SAME)


def test_the_order_of_the_support_set_does_not_matter(engine):
    work = problem(9, [2, 3, 4])
    order = np.random.default_rng(0).permutation(9)
    shuffled = SupportSet(work.support.inputs[order], work.support.labels[order], 3)
    got = rows_of(answer(engine, "shuffled", Problem(CONV, shuffled, work.query)))
    want = rows_of(answer(engine, "sorted", work))
    np.testing.assert_allclose(got, want, **SAME)


@pytest.mark.parametrize("model", [CONV, DEEP])
def test_exported_weights_run_by_hand_give_the_served_probabilities(engine, models, model):
    work = problem(10, [1, 2, 3], model=model)
    served = rows_of(answer(engine, "exported", work))
    phi = engine.weights(model, "exported").result(SECONDS)
    again = engine.adapt(model, "again", work.support, work.steps, None, export=True)
    for name, value in again.result(SECONDS).weights.items():
        np.testing.assert_allclose(value, phi[name], **SAME)
    theta = models[model].theta
    assert set(phi) == set(theta)
    assert phi["head.weight"].shape == (3, theta["head.weight"].shape[1])
    assert phi["head.bias"].shape == (3,)
    assert all(value.dtype == np.float32 for value in phi.values())
    tensors = {name: torch.from_numpy(value) for name, value in phi.items()}
    features = models[model].learner.features(tensors, torch.from_numpy(work.query))
    logits = features @ tensors["head.weight"].T + tensors["head.bias"]
    if model == CONV:  # 3 classes, of 1, 2 and 3 examples
        a, of_ways, of_shots = CALIBRATION.temperature
        logits /= math.exp(a + of_ways * math.log(3) + of_shots * math.log(3 / (1 + 1 / 2 + 1 / 3)))
    np.testing.assert_allclose(served, logits.softmax(-1).numpy(), **SAME)


def test_exported_weights_are_a_copy(engine):
    work = problem(11, [1, 2])
    served = rows_of(answer(engine, "copied", work))
    for value in engine.weights(CONV, "copied").result(SECONDS).values():
        value[:] = 0
    again = engine.predict(CONV, "copied", work.query).result(SECONDS).probabilities
    np.testing.assert_array_equal(again, served)


def test_a_key_that_was_never_adapted_is_missing(engine):
    work = problem(12, [1, 1])
    for future in (engine.predict(CONV, "nobody", work.query), engine.weights(CONV, "nobody")):
        with pytest.raises(PhiMissing):
            future.result(SECONDS)


def test_a_missing_phi_does_not_disturb_its_neighbours(running, device, models):
    engine, work = running(), problem(13, [2, 1])
    answer(engine, "there", work)
    device.hold(engine)
    keys = ["there", "gone", "there", "gone"]
    futures = [engine.predict(CONV, key, work.query) for key in keys]
    device.gate.set()
    want = rows_of(plain(models[CONV], work))
    for key, future in zip(keys, futures, strict=True):
        if key == "gone":
            with pytest.raises(PhiMissing):
                future.result(SECONDS)
        else:
            np.testing.assert_allclose(future.result(SECONDS).probabilities, want, **SAME)


def test_forget_drops_phi_and_nothing_else(engine):
    work = problem(14, [1, 1])
    for key in ("kept", "dropped"):
        answer(engine, key, work)
    engine.forget("dropped")
    engine.forget("was never there")
    with pytest.raises(PhiMissing):
        engine.predict(CONV, "dropped", work.query).result(SECONDS)
    assert engine.predict(CONV, "kept", work.query).result(SECONDS).probabilities.shape == (6, 2)


def test_an_evicted_phi_is_missing_and_adapting_again_gives_the_same(running):
    works = [problem(seed, [1, 2, 1]) for seed in (20, 21, 22)]
    roomy = running()
    answer(roomy, "one", works[0])
    engine = running(phi_cache_bytes=2 * roomy.stats()["phi_cache_bytes"])  # room for two
    first = [rows_of(answer(engine, f"{n}", work)) for n, work in enumerate(works)]
    assert engine.stats()["phi_cache_sessions"] == 2
    assert engine.stats()["phi_cache_evictions_total"] == 1
    with pytest.raises(PhiMissing):
        engine.predict(CONV, "0", works[0].query).result(SECONDS)
    np.testing.assert_allclose(rows_of(answer(engine, "0", works[0])), first[0], **SAME)
    again = engine.predict(CONV, "0", works[0].query).result(SECONDS).probabilities
    np.testing.assert_allclose(again, first[0], **SAME)


def test_without_a_cache_every_adaptation_is_answered_and_nothing_is_kept(running, models):
    engine, work = running(phi_cache_bytes=0), problem(23, [1, 2])
    want = rows_of(plain(models[CONV], work))
    np.testing.assert_allclose(rows_of(answer(engine, "a", work)), want, **SAME)
    with pytest.raises(PhiMissing):
        engine.predict(CONV, "a", work.query).result(SECONDS)


def test_a_key_adapted_anew_answers_with_the_new_phi(engine, models):
    old, new = problem(24, [1, 2]), problem(25, [2, 1, 1])
    answer(engine, "reused", old)
    answer(engine, "reused", new)
    rows = engine.predict(CONV, "reused", new.query).result(SECONDS).probabilities
    np.testing.assert_allclose(rows, rows_of(plain(models[CONV], new)), **SAME)


def test_sixteen_threads_of_twenty_requests_all_get_their_own_answers(engine, models):
    problems = many_problems(16, seed=30)
    wants = [rows_of(plain(models[work.model], work)) for work in problems]

    def caller(number: int) -> float:
        worst = 0.0
        for turn in range(10):
            index = (number + turn) % len(problems)
            work, key = problems[index], f"thread:{number}:{turn}"
            rows = [
                rows_of(answer(engine, key, work)),
                engine.predict(work.model, key, work.query).result(SECONDS).probabilities,
            ]
            worst = max(worst, *(float(np.abs(got - wants[index]).max()) for got in rows))
        return worst

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(caller, range(16))) < 1e-5


def test_the_engine_serves_what_the_registry_holds_and_no_other(engine):
    assert engine.card(CONV) is not None
    assert engine.card(DEEP) is not None
    assert engine.card(ModelKey("conv", 2)) is None
    work = problem(31, [1, 1])
    with pytest.raises(NotReady, match="conv version 2"):
        engine.predict(ModelKey("conv", 2), "any", work.query)


def test_the_counters_count(running):
    engine = running()
    zero = engine.stats()
    assert zero.keys() == FIGURES.keys()
    assert zero.pop("lanes") >= 1
    assert set(zero.values()) == {0}, "warming up is not work"
    work = problem(32, [1, 1])
    answer(engine, "counted", work)
    engine.predict(CONV, "counted", work.query).result(SECONDS)
    with pytest.raises(PhiMissing):
        engine.predict(CONV, "missing", work.query).result(SECONDS)
    wait_until(lambda: engine.stats()["busy_seconds_total"] > 0)
    now = engine.stats()
    assert now["batches_total"] == now["batched_requests_total"] == 3
    assert (
        now["batch_failures_total"] == now["queue_length"] == now["phi_cache_evictions_total"] == 0
    )
    assert now["phi_cache_sessions"] == now["phi_cache_hits_total"] == 1
    assert now["phi_cache_misses_total"] == 1
    assert now["phi_cache_bytes"] > 3000
    assert now["phi_cache_rebuilds_total"] == now["phi_cache_rebuild_seconds_total"] == 0
    answer(engine, "missing", work)
    answer(engine, "missing", work)
    now = engine.stats()
    assert now["phi_cache_rebuilds_total"] == 1, "what nobody missed is not made anew"
    assert now["phi_cache_rebuild_seconds_total"] > 0
