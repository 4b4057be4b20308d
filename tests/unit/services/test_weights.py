import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
import safetensors.numpy

from app.database import SessionRecord
from app.registry.card import Calibration
from app.services.weights import weights_file
from tests.fakes import make_card

RECORD = SessionRecord(
    id="ses_1",
    owner="ann",
    model="values",
    model_version=1,
    theta_sha256="0f" * 32,
    task="classification",
    revision=3,
    labels=["b", "a\0", "😀"],
    shots={"b": 1, "a\0": 1, "😀": 2},
    steps=2,
    support_loss=[1.0, 0.5, 0.2],
    support_sha256="0a" * 32,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    expires_at=None,
    metadata={"secret": "not for the file"},
)


def metadata_of(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def test_tensors_are_written_as_they_look_whatever_their_memory():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    phi = {"transposed": matrix.T, "strided": matrix[:, ::2], "scalar": np.float32(5).reshape(())}
    got = safetensors.numpy.load(weights_file(phi, RECORD, make_card("values")))
    assert {name: values.tolist() for name, values in got.items()} == {
        "transposed": [[0, 3], [1, 4], [2, 5]],
        "strided": [[0, 2], [3, 5]],
        "scalar": 5,
    }


def test_the_metadata_says_how_to_run_it_elsewhere():
    card = make_card("values")
    metadata = metadata_of(weights_file({"w": np.zeros(1, np.float32)}, RECORD, card))
    assert json.loads(metadata.pop("labels")) == ["b", "a\0", "😀"]
    assert json.loads(metadata.pop("input")) == {
        "kind": "values",
        "shape": [4],
        "dark_on_light": False,
        "mean": None,
        "scale": None,
    }
    assert json.loads(metadata.pop("network")) == {"name": "mlp", "hidden": [8]}
    assert "softmax" in metadata.pop("how_to_run")
    assert metadata == {
        "session": "ses_1",
        "revision": "3",
        "support_sha256": "0a" * 32,
        "task": "classification",
        "steps": "2",
        "model": "values",
        "model_version": "1",
        "theta_sha256": "0f" * 32,
        "head": "shared-row",
        "temperature": "1.0",
    }


def test_the_temperature_is_that_of_the_sessions_classes_and_shots():
    calibration = Calibration(temperature=(0.5, 0.25, -0.125), outlier=(0,) * 6)
    card = make_card("values", calibration=calibration)
    metadata = metadata_of(weights_file({"w": np.zeros(1, np.float32)}, RECORD, card))
    shots = 3 / (1 + 1 + 1 / 2)  # the harmonic mean of 1, 1 and 2
    expected = math.exp(0.5 + 0.25 * math.log(3) - 0.125 * math.log(shots))
    assert float(metadata["temperature"]) == pytest.approx(expected, rel=1e-5)
