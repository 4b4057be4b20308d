"""A support set in memory and as the bytes that the database keeps.

A blob is one safetensors file with the examples of one revision: the tensors `pictures` uint8
(P, *input_shape) and `values` float32 (V, *input_shape), each in its own order, and for the M
examples `is_picture` bool (M,) and `labels` int32 (M,). Example m is the next picture or the next
values, and its label an index into the session's labels, which later revisions only lengthen.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from app.data.images import to_float
from app.engine.requests import Floats, SupportSet
from app.errors import InnerloopError

FORMAT_KEY, FORMAT = "innerloop.support", "1"


@dataclass(frozen=True)
class Inputs:
    """M decoded inputs, pictures and values apart as they are stored."""

    pictures: NDArray[np.uint8]
    values: Floats
    is_picture: NDArray[np.bool_]

    @classmethod
    def of(
        cls, items: Sequence[NDArray[np.uint8] | Floats], input_shape: tuple[int, ...]
    ) -> "Inputs":
        """Sort arrays of `input_shape`: uint8 ones are pictures, float32 ones values."""
        is_picture = np.array([item.dtype == np.uint8 for item in items], np.bool_)
        pictures = [item for item in items if item.dtype == np.uint8]
        values = [item for item in items if item.dtype != np.uint8]
        return cls(
            np.array(pictures, np.uint8).reshape(-1, *input_shape),
            np.array(values, np.float32).reshape(-1, *input_shape),
            is_picture,
        )

    def __len__(self) -> int:
        return len(self.is_picture)

    def floats(self) -> Floats:
        """What a network sees, (M, *input_shape) float32."""
        inputs = np.empty((len(self), *self.pictures.shape[1:]), np.float32)
        inputs[self.is_picture] = to_float(self.pictures)
        inputs[~self.is_picture] = self.values
        return inputs


@dataclass(frozen=True)
class Examples:
    """M labelled inputs; `labels` (M,) are indices into the session's labels."""

    inputs: Inputs
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Growth:
    """A support set with one more revision.

    `labels` in the order of their first appearance, `shots` counted over all revisions, `support`
    what the engine adapts to, `blob` the bytes of the new revision's examples, and `sha256` the
    digest of all blobs.
    """

    labels: list[str]
    shots: dict[str, int]
    support: SupportSet
    blob: bytes
    sha256: str


def grow(
    known: Sequence[str],
    parts: Sequence[Examples],
    sha256: str,
    inputs: Inputs,
    labels: Sequence[str],
) -> Growth:
    """Add M examples to a support set, or begin one.

    Args:
        known: the labels so far.
        parts: the examples so far, revision by revision.
        sha256: the digest so far, "" where there are no examples.
        inputs: the M new inputs.
        labels: their M labels.
    """
    all_labels, numbers = index_labels(known, labels)
    added = Examples(inputs, numbers)
    support = support_set([*parts, added], len(all_labels))
    counts = np.bincount(support.labels, minlength=support.ways).tolist()
    blob = encode(added)
    return Growth(
        labels=all_labels,
        shots=dict(zip(all_labels, counts, strict=True)),
        support=support,
        blob=blob,
        sha256=chain_digest([blob], sha256),
    )


def index_labels(
    known: Sequence[str], labels: Sequence[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Number labels in the order of their first appearance, behind those known already.

    Returns:
        All labels, and the number of each of `labels`, (M,).
    """
    index = {label: i for i, label in enumerate(known)}
    numbers = np.array([index.setdefault(label, len(index)) for label in labels], np.int64)
    return list(index), numbers


def support_set(parts: Sequence[Examples], ways: int) -> SupportSet:
    """Put the examples of every revision together, for the engine."""
    return SupportSet(
        inputs=np.concatenate([part.inputs.floats() for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        ways=ways,
    )


def encode(examples: Examples) -> bytes:
    """Write the blob of one revision's examples."""
    return safetensors.numpy.save(
        {
            "pictures": examples.inputs.pictures,
            "values": examples.inputs.values,
            "is_picture": examples.inputs.is_picture,
            "labels": examples.labels.astype(np.int32),
        },
        metadata={FORMAT_KEY: FORMAT},
    )


def decode(blob: bytes) -> Examples:
    """Read a blob back.

    Raises:
        InnerloopError: the blob is of another version of the format.
    """
    header_bytes = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + header_bytes])
    found = header.get("__metadata__", {}).get(FORMAT_KEY)
    if found != FORMAT:
        raise InnerloopError(
            f"a stored support set has format {found!r}, and this version reads {FORMAT!r}; "
            "run the version that wrote it"
        )
    tensors = safetensors.numpy.load(blob)
    return Examples(
        Inputs(tensors["pictures"], tensors["values"], tensors["is_picture"]),
        tensors["labels"].astype(np.int64),
    )


def chain_digest(blobs: Sequence[bytes], previous: str = "") -> str:
    """SHA-256 of a support set, blob by blob: each digest covers the one before it and a blob."""
    for blob in blobs:
        previous = sha256(previous.encode() + blob).hexdigest()
    return previous
