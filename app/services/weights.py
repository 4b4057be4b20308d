"""φ as a file that says how to run it elsewhere."""

import json
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from app.database import SessionRecord
from app.engine.requests import Floats
from app.registry import Card


def weights_file(phi: Mapping[str, Floats], record: SessionRecord, card: Card) -> bytes:
    """Write φ as safetensors.

    The metadata, all strings, name the session, its model and the head, and hold as JSON the labels
    (in the order of the outputs), the model's input and its network.
    """
    # Safetensors copies memory as it lies, so a view with strides would be written wrong.
    tensors = {name: np.asarray(values, order="C") for name, values in phi.items()}
    return safetensors.numpy.save(
        tensors,
        metadata={
            "session": record.id,
            "revision": str(record.revision),
            "support_sha256": record.support_sha256,
            "task": record.task,
            "labels": json.dumps(record.labels),
            "steps": str(record.steps),
            "model": record.model,
            "model_version": str(record.model_version),
            "theta_sha256": record.theta_sha256,
            "input": card.input.model_dump_json(),
            "network": json.dumps(card.network),
            "head": card.head,
        },
    )
