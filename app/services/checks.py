"""What a request may ask of a model under the service's limits.

Every function here raises InvalidInput with all the rules that a request breaks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.requests import Floats
from app.learning.heads import FixedHead, build_head
from app.registry import Card
from app.services.inputs import decode_inputs
from app.services.issues import Issues
from app.services.support import Inputs, index_labels
from app.services.views import Example, Input, NewSession
from app.settings import Settings


@dataclass(frozen=True)
class Draft:
    """A new session that breaks no rule; `query` is (Q, *input_shape) or None."""

    support: Inputs
    query: Floats | None
    steps: int


def check_new(new: NewSession, card: Card, settings: Settings) -> Draft:
    """Check a new session, and decode what it brings."""
    issues = Issues()
    ways = len({example.label for example in new.support})
    if new.steps is not None:
        _check_range(issues, "/steps", new.steps, settings.max_steps)
    if new.ttl_seconds is not None:
        _check_range(issues, "/ttl_seconds", new.ttl_seconds, settings.max_ttl_seconds)
    _check_metadata(issues, new.metadata, settings.max_metadata_bytes)
    if ways < 2:
        issues.add("/support", f"needs at least 2 distinct labels, and has {ways}")
    _note_growth(issues, ways, len(new.support), card, settings)
    support = _decode_support(issues, new.support, card, settings)
    query = None if new.query is None else _decode_query(issues, new.query, card, settings)
    issues.raise_any()
    return Draft(
        support=support,
        query=None if query is None else query.floats(),
        steps=default_steps(card, settings) if new.steps is None else new.steps,
    )


def check_addition(support: Sequence[Example], card: Card, settings: Settings) -> Inputs:
    """Check examples to add, but for how they fit with those that are there, and decode them."""
    issues = Issues()
    _check_count(issues, "/support", len(support), settings.max_support)
    inputs = _decode_support(issues, support, card, settings)
    issues.raise_any()
    return inputs


def check_growth(ways: int, total: int, card: Card, settings: Settings) -> None:
    """Check the size of a session's support set, all its revisions together."""
    issues = Issues()
    _note_growth(issues, ways, total, card, settings)
    issues.raise_any()


def check_query(query: Sequence[Input], card: Card, settings: Settings) -> Floats:
    """Check a query, and make it (Q, *input_shape)."""
    issues = Issues()
    inputs = _decode_query(issues, query, card, settings)
    issues.raise_any()
    return inputs.floats()


def check_evaluation(
    examples: Sequence[Example], labels: Sequence[str], card: Card, settings: Settings
) -> tuple[Floats, NDArray[np.int64]]:
    """Check examples to measure a session by.

    Returns:
        The inputs (Q, *input_shape), and the index of each one's true label (Q,).
    """
    issues = Issues()
    _check_count(issues, "/examples", len(examples), settings.max_query)
    known = set(labels)
    for i, example in enumerate(examples):
        if example.label not in known:
            issues.add(f"/examples/{i}/label", "is not a label of this session")
    inputs = decode_inputs(
        issues,
        [example.input for example in examples],
        "/examples/{}/input",
        card.input,
        settings.max_query,
        settings.max_image_pixels,
    )
    issues.raise_any()
    _, true = index_labels(labels, [example.label for example in examples])
    return inputs.floats(), true


def _decode_support(
    issues: Issues, support: Sequence[Example], card: Card, settings: Settings
) -> Inputs:
    return decode_inputs(
        issues,
        [example.input for example in support],
        "/support/{}/input",
        card.input,
        settings.max_support,
        settings.max_image_pixels,
    )


def _decode_query(issues: Issues, query: Sequence[Input], card: Card, settings: Settings) -> Inputs:
    _check_count(issues, "/query", len(query), settings.max_query)
    return decode_inputs(
        issues, query, "/query/{}", card.input, settings.max_query, settings.max_image_pixels
    )


def _note_growth(issues: Issues, ways: int, total: int, card: Card, settings: Settings) -> None:
    head = build_head(card.head)
    if total > settings.max_support:
        issues.add(
            "/support",
            f"makes {total} examples of this session, at most {settings.max_support} are allowed",
        )
    if ways > settings.max_classes:
        issues.add(
            "/support",
            f"makes {ways} distinct labels of this session, "
            f"at most {settings.max_classes} are allowed",
        )
    elif isinstance(head, FixedHead) and ways != head.ways:
        issues.add(
            "/support",
            f"makes {ways} distinct labels of this session, "
            f"the head of this model takes exactly {head.ways}",
        )


def default_steps(card: Card, settings: Settings) -> int:
    """Inner steps of a session that asks for no number."""
    return min(card.steps, settings.max_steps)


def _check_count(issues: Issues, pointer: str, count: int, most: int) -> None:
    if count == 0:
        issues.add(pointer, "must not be empty")
    elif count > most:
        issues.add(pointer, f"has {count} items, at most {most} are allowed")


def _check_range(issues: Issues, pointer: str, number: int, most: int) -> None:
    if not 1 <= number <= most:
        issues.add(pointer, f"must be from 1 to {most}")


def _check_metadata(issues: Issues, metadata: dict[str, Any], most: int) -> None:
    try:
        # The size that a caller counts: compact JSON in UTF-8.
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (ValueError, RecursionError):
        issues.add("/metadata", "must be plain JSON: finite numbers, valid Unicode, less nesting")
        return
    if size > most:
        issues.add("/metadata", f"has {size} bytes as JSON, at most {most} are allowed")
