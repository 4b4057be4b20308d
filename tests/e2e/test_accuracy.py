"""The service is as accurate as the offline evaluation says: drawings as PNG files over HTTP."""

import base64
import math
import random
import zipfile

import pytest

from app.registry import Registry

WAYS, QUERIES, TASKS = 5, 5, 60


@pytest.fixture(scope="module")
def drawings(omniglot_folder):
    """PNG bytes of the evaluation alphabets by character, exactly as released."""
    characters: dict[str, list[bytes]] = {}
    with zipfile.ZipFile(omniglot_folder / "images_evaluation.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".png"):
                characters.setdefault(name.rpartition("/")[0], []).append(archive.read(name))
    return list(characters.values())


def test_5_way_1_shot_accuracy_over_http_is_that_of_the_card(client, drawings, models_folder):
    rng = random.Random(5)
    accuracies = []
    for _ in range(TASKS):
        task = [rng.sample(character, 1 + QUERIES) for character in rng.sample(drawings, WAYS)]
        answer = client.post(
            "/v1/sessions",
            json={
                "support": [
                    {"input": picture(files[0]), "label": str(label)}
                    for label, files in enumerate(task)
                ],
                "query": [picture(file) for files in task for file in files[1:]],
            },
        )
        assert answer.status_code == 201, answer.text
        truth = [str(label) for label in range(WAYS) for _ in range(QUERIES)]
        guesses = [prediction["label"] for prediction in answer.json()["predictions"]]
        right = sum(guess == true for guess, true in zip(guesses, truth, strict=True))
        accuracies.append(100 * right / len(truth))

    mean = sum(accuracies) / TASKS
    deviation = math.sqrt(sum((value - mean) ** 2 for value in accuracies) / (TASKS - 1))
    card = Registry(models_folder).latest("omniglot")
    figure = next(f for f in card.figures if (f.ways, f.shots) == (WAYS, 1))
    # Three standard errors of these tasks, plus the interval of the card's own figure.
    margin = 3 * deviation / math.sqrt(TASKS) + figure.accuracy - figure.confidence_interval_95[0]
    assert mean == pytest.approx(figure.accuracy, abs=margin)


def picture(content):
    return {"image": base64.b64encode(content).decode()}
