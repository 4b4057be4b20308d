"""Creating a session, on a real SQLite and with the honest fake engine."""

import numpy as np
import pytest

from app.engine.requests import ModelKey
from app.errors import InvalidInput, ModelNotFound
from app.services import Example, NewSession, SessionService
from tests.fakes import example, make_card, picture, values
from tests.unit.services.common import KEY, LABELS, MORE, QUERY, SUPPORT, stored

pytestmark = pytest.mark.anyio


async def test_a_session_learns_answers_and_is_stored(service, engine, models, clock):
    created = await service.create("ann", NewSession(SUPPORT, query=QUERY, ttl_seconds=60))
    card = models.newest("values")
    assert created.id.startswith("ses_")
    assert (created.model, created.model_version) == ("values", 1)
    assert (created.theta_sha256, created.task) == (card.theta_sha256, "classification")
    assert (created.revision, created.steps) == (1, 3)
    assert created.labels == ["b", "a"]
    assert created.shots == {"b": 2, "a": 1}
    assert len(created.support_loss) == 4
    assert created.support_loss[0] == pytest.approx(np.log(2))
    assert created.created_at == clock()
    assert (created.expires_at - created.created_at).total_seconds() == 60
    assert [prediction.label for prediction in created.predictions] == ["a", "b"]
    assert await stored(service) == [await service.get("ann", created.id)]

    [call] = engine.calls
    assert (call.model, call.steps) == (ModelKey("values", 1), 3)
    assert call.support.inputs.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert (call.support.labels.tolist(), call.support.ways) == ([0, 1, 0], 2)
    assert call.query.tolist() == [[1, 0, 0, 0], [0, 0.5, 0, 0]]


async def test_predictions_are_probabilities_of_the_sessions_labels(service):
    [prediction, _] = (await service.create("ann", NewSession(SUPPORT, query=QUERY))).predictions
    # Squared distances 1.25 and 0.
    expected = {"b": 1 / (1 + np.exp(1.25)), "a": 1 / (1 + np.exp(-1.25))}
    assert prediction.probabilities == pytest.approx(expected, rel=1e-6)
    assert list(prediction.probabilities) == ["b", "a"]
    assert prediction.probability == prediction.probabilities["a"]


async def test_without_a_query_there_are_no_predictions(service, engine):
    assert (await service.create("ann", NewSession(SUPPORT))).predictions is None
    assert engine.calls[0].query is None


async def test_what_is_read_later_is_what_was_answered(service):
    metadata = {"n": 10**20, "x": [2.5, None, {"y": True}]}
    new = NewSession(SUPPORT, ttl_seconds=60, metadata=metadata)
    created = await service.create("ann", new)
    assert await service.get("ann", created.id) == created
    assert created.metadata == metadata


async def test_top_shortens_what_a_prediction_shows(service):
    new = NewSession([*SUPPORT, *MORE], query=QUERY)
    created = await service.create("ann", new, top=1)
    assert [list(prediction.probabilities) for prediction in created.predictions] == [["a"], ["b"]]
    got = await service.predict("ann", created.id, QUERY, top=2)
    assert [list(prediction.probabilities) for prediction in got.data] == [["a", "b"], ["b", "a"]]


async def test_a_session_without_a_model_takes_the_default(service):
    assert (await service.create("ann", NewSession(SUPPORT))).model == "values"


@pytest.mark.parametrize("model", ["nope", "", "../values", "\0"])
async def test_an_unknown_model_is_not_found(service, model):
    with pytest.raises(ModelNotFound, match="omniglot, values"):
        await service.create("ann", NewSession(SUPPORT, model=model))


async def test_a_session_is_pinned_to_its_version(service, engine, registry):
    created = await service.create("ann", NewSession(SUPPORT))
    registry.put(make_card("values", 2))
    engine.read(registry)
    engine.phi.clear()
    await service.predict("ann", created.id, QUERY)
    assert {call.model for call in engine.calls} == {ModelKey("values", 1)}
    assert (await service.create("ann", NewSession(SUPPORT))).model_version == 2


async def test_a_version_that_the_engine_does_not_hold_yet_is_passed_over(
    service, engine, registry
):
    registry.put(make_card("values", 2))
    created = await service.create("ann", NewSession(SUPPORT))
    assert (created.model_version, engine.calls[0].model) == (1, ModelKey("values", 1))


async def test_pictures_and_what_a_network_sees_mix_in_one_session(service, engine):
    ink = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    seen = ((255 - ink.astype(int)) / 255)[None].tolist()
    support = [
        Example(picture(ink), "picture"),
        Example(values(*np.zeros((1, 28, 28)).tolist()), "blank"),
    ]
    new = NewSession(support, model="omniglot", query=[values(*seen), picture(ink)])
    created = await service.create("ann", new)
    first, second = created.predictions
    assert (first.label, first.probability) == ("picture", pytest.approx(1))
    assert second == first

    engine.phi.clear()
    rebuilt = await service.predict("ann", created.id, new.query)
    assert rebuilt.data == created.predictions


async def test_a_broken_request_never_reaches_the_engine(service, engine):
    with pytest.raises(InvalidInput):
        await service.create("ann", NewSession(SUPPORT[:1]))
    assert engine.calls == []
    assert await stored(service) == []


@pytest.mark.parametrize("query", [None, QUERY])
async def test_a_support_set_that_overflows_is_refused_and_not_stored(service, engine, query):
    huge = [*SUPPORT, example("a", 1e30, -1e30, 0, 0)]
    with pytest.raises(InvalidInput, match="/support: too large"):
        await service.create("ann", NewSession(huge, query=query))
    assert await stored(service) == []
    assert engine.phi == {}


async def test_a_query_that_overflows_is_refused_and_its_session_not_stored(service, engine):
    new = NewSession(SUPPORT, query=[*QUERY, values(3e38, 0, 0, 0)])
    with pytest.raises(InvalidInput, match=r"^/query/2: too large"):
        await service.create("ann", new)
    assert await stored(service) == []
    assert engine.phi == {}


async def test_any_text_may_be_a_label(database, engine, models, settings, clock):
    roomy = settings.model_copy(update={"max_classes": 20, "max_support": 20})
    service = SessionService(database, engine, models, roomy, clock)
    support = [example(label, i, 0, 0, 0) for i, label in enumerate(LABELS)]
    query = [values(i, 0, 0, 0) for i in range(3)]
    created = await service.create("ann", NewSession(support, query=query), idempotency=KEY)
    assert created.labels == LABELS
    assert [prediction.label for prediction in created.predictions] == LABELS[:3]
    assert (await service.get("ann", created.id)).labels == LABELS
    assert await service.create("ann", NewSession(support), idempotency=KEY) == created
    engine.phi.clear()
    assert (await service.predict("ann", created.id, query)).data == created.predictions
    evaluation = await service.evaluate("ann", created.id, support[:3])
    assert (evaluation.accuracy, list(evaluation.confusion)) == (1, LABELS)
