"""What an answer may depend on, shown through a real server: the session and the query alone."""

import signal

import pytest

TOLERANCE = 1e-5
"""In probability: the same φ, computed in another batch or another process."""


def probabilities(answer):
    return [prediction["probabilities"] for prediction in answer]


def furthest(some, others):
    assert len(some) == len(others)
    return max(
        abs(one[label] - other[label])
        for one, other in zip(some, others, strict=True)
        for label in one | other
    )


def create(client, support, **more):
    response = client.post("/v1/sessions", json={"support": support, **more})
    assert response.status_code == 201, response.text
    return response.json()


def predict(client, session, query):
    response = client.post(f"/v1/sessions/{session['id']}/predictions", json={"query": query})
    assert response.status_code == 200, response.text
    return probabilities(response.json()["data"])


def support_of(drawing, shots):
    """A support set of len(shots) classes, shots[c] drawings of class c."""
    return [
        {"input": drawing(character, hand), "label": f"class {character}"}
        for character, count in enumerate(shots)
        for hand in range(count)
    ]


def test_a_query_is_answered_the_same_alone_and_among_fifty_others(client, drawing):
    session = create(client, support_of(drawing, [1, 1, 1, 1, 1]))
    query = [drawing(character % 5, 10 + character) for character in range(51)]

    together = predict(client, session, query)
    alone = [predict(client, session, [one])[0] for one in (query[0], query[17], query[50])]

    assert furthest([together[0], together[17], together[50]], alone) <= TOLERANCE


def test_an_answer_at_creation_is_that_of_a_later_query(client, drawing):
    query = [drawing(1, 9), drawing(2, 9)]
    session = create(client, support_of(drawing, [2, 1, 3]), query=query)

    later = predict(client, session, query)

    assert furthest(probabilities(session["predictions"]), later) <= TOLERANCE


def test_answers_are_the_same_after_a_kill_and_a_restart(start_server, drawing):
    query = [drawing(character, 9) for character in range(4)]
    with start_server() as server:
        session = create(server.client, support_of(drawing, [1, 2, 1, 3]))
        before = predict(server.client, session, query)
        server.signal(signal.SIGKILL)
        server.wait()

    with start_server() as server:
        after = predict(server.client, session, query)

    assert furthest(before, after) <= TOLERANCE


def test_answers_are_the_same_after_phi_was_evicted(start_server, drawing):
    query = [drawing(character, 9) for character in range(3)]
    with start_server(INNERLOOP_PHI_CACHE_BYTES="5000000") as server:  # room for two φ
        session = create(server.client, support_of(drawing, [1, 1, 1]))
        before = predict(server.client, session, query)
        for hand in range(1, 5):
            create(server.client, [{"input": drawing(c, hand), "label": str(c)} for c in range(3)])
        metrics = server.client.get("/metrics").text
        lines = [line for line in metrics.splitlines() if not line.startswith("#")]
        evictions = next(line for line in lines if "evictions_total " in line)
        assert float(evictions.split()[-1]) >= 3, "φ was not evicted, so this shows nothing"

        after = predict(server.client, session, query)

    assert furthest(before, after) <= TOLERANCE


def test_renaming_and_reordering_labels_permutes_the_answers(client, drawing):
    support = support_of(drawing, [1, 3, 2, 1])
    query = [drawing(character, 8) for character in range(4)]
    renamed = {f"class {c}": name for c, name in enumerate(("zebra", "Ä", "1", "a b"))}
    other = [{**example, "label": renamed[example["label"]]} for example in reversed(support)]

    first = create(client, support, query=query)
    second = create(client, other, query=query)

    assert second["labels"] == [renamed[label] for label in reversed(first["labels"])]
    expected = [
        {renamed[label]: value for label, value in answer.items()}
        for answer in probabilities(first["predictions"])
    ]
    assert furthest(expected, probabilities(second["predictions"])) <= TOLERANCE


@pytest.mark.parametrize("shots", [[1, 1], [1, 2, 4], [1] * 19 + [3], [1] * 48 + [2, 5]])
def test_any_number_of_classes_and_ragged_shots_are_learned(client, drawing, shots):
    support = support_of(drawing, shots)

    session = create(client, support, query=[example["input"] for example in support])

    assert session["shots"] == {f"class {c}": count for c, count in enumerate(shots)}
    guesses = [prediction["label"] for prediction in session["predictions"]]
    right = sum(g == e["label"] for g, e in zip(guesses, support, strict=True))
    assert right >= 0.9 * len(support), "the examples it learned from are not recognised"
