"""φ as a file that says how to run it elsewhere."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.numpy
import torch

from app.database import SessionRecord
from app.engine.requests import Floats
from app.learning.calibration import task_size, temperature
from app.registry import Card

HOW_TO_RUN = (
    "An input is float32 of the shape in `input`; a picture is made grey (ITU-R BT.601) or RGB, "
    "laid over white, resized by an antialiased bilinear filter with its aspect kept and centred, "
    "divided by 255, and with dark_on_light subtracted from 1. Network `conv`: a block is a 3 x 3 "
    "convolution with padding 1 (its number in `strides` is its stride, or where `downsample` is "
    "pool the side of max pooling at the block's end), group norm (eps 1e-5), ReLU; the last "
    "activations are flattened by channel, row, column and with feature_norm made to have mean 0 "
    "and variance 1 (eps 1e-5). Network `mlp`: linear layers "
    "with ReLU after each. Any other network is what the factory that it names, "
    "package.module:factory, makes of the shape in `input` and its other entries. Where `input` "
    "has a mean and a scale, a number for each place of the first axis, the network is given "
    "(input - mean) / scale. Probabilities: softmax((head.weight @ features + head.bias) / "
    "temperature), by `labels`; in float32 first subtract the mean of its rows from head.weight, "
    "which changes no probability but by rounding."
)


def weights_file(phi: Mapping[str, Floats], record: SessionRecord, card: Card) -> bytes:
    """Write φ as safetensors.

    The metadata, all strings, name the session, its model and the head, and hold as JSON the labels
    (in the order of the outputs), the model's input and its network; `how_to_run` says the rest.
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
            "how_to_run": HOW_TO_RUN,
            "input": card.input.model_dump_json(),
            "network": json.dumps(card.network),
            "head": card.head,
            "temperature": str(_temperature(card, list(record.shots.values()))),
        },
    )


def _temperature(card: Card, shots: Sequence[int]) -> float:
    """What the logits of a session with so many examples of each class are divided by."""
    if card.calibration is None:
        return 1.0
    size = task_size(torch.tensor(shots), torch.ones(len(shots), dtype=torch.bool))
    return float(temperature(card.calibration.temperature, size))
