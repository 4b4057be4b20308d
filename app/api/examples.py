"""Example bodies for the document. Those of requests work as they stand, with `omniglot`."""

from typing import Any

LYING = {
    "image": "iVBORw0KGgoAAAANSUhEUgAAAAwAAAAMAQAAAAB+DmFKAAAAGUlEQVR42mP8/5GJgQEZMRwwYGJgYEQS"
    "BwBoogTlQTbS4AAAAABJRU5ErkJggg=="
}
"""A dark stroke that lies, 12 x 12 pixels."""
STANDING = {
    "image": "iVBORw0KGgoAAAANSUhEUgAAAAwAAAAMAQAAAAB+DmFKAAAAGklEQVR42mP8/5GJgYHpLwMTAzbEzMDE"
    "wAAAYWsDCGFrR1MAAAAASUVORK5CYII="
}
"""A dark stroke that stands."""
SLOPING = {
    "image": "iVBORw0KGgoAAAANSUhEUgAAAAwAAAAMAQAAAAB+DmFKAAAAHklEQVR42mP8/5GJgQGBHjAwPWFg+GPA"
    "+H8jI0wKAJXKCJTpE77kAAAAAElFTkSuQmCC"
}
"""A dark stroke that almost lies."""

SESSION_ID = "ses_019bd2c8f4a07e1b5c9d3f6a8e0b2d4c"
REQUEST_ID = "5f0c1d2e3b4a59687786a5b4c3d2e1f0"

_SUPPORT = [{"input": LYING, "label": "lying"}, {"input": STANDING, "label": "standing"}]

NEW_SESSION: dict[str, Any] = {
    "model": "omniglot",
    "support": _SUPPORT,
    "query": [SLOPING],
    "steps": 5,
    "ttl_seconds": 86400,
    "metadata": {"user": "42"},
}
NEW_QUERY: dict[str, Any] = {"query": [SLOPING], "top": 1}
MORE_EXAMPLES: dict[str, Any] = {"support": [{"input": SLOPING, "label": "sloping"}]}
NEW_EVALUATION: dict[str, Any] = {"examples": [{"input": SLOPING, "label": "lying"}]}

_PREDICTION = {
    "label": "lying",
    "probability": 0.97,
    "probabilities": {"lying": 0.97, "standing": 0.03},
    "outlier": 0.04,
}
SESSION: dict[str, Any] = {
    "id": SESSION_ID,
    "object": "session",
    "model": "omniglot",
    "model_version": 1,
    "theta_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "task": "classification",
    "revision": 1,
    "labels": ["lying", "standing"],
    "shots": {"lying": 1, "standing": 1},
    "steps": 5,
    "support_loss": [0.69, 0.31, 0.12, 0.06, 0.04, 0.02],
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-02T00:00:00Z",
    "metadata": {"user": "42"},
    "predictions": [_PREDICTION],
}
PREDICTION_LIST: dict[str, Any] = {
    "object": "list",
    "session": SESSION_ID,
    "revision": 1,
    "data": [_PREDICTION],
}
EVALUATION: dict[str, Any] = {
    "object": "evaluation",
    "n": 20,
    "accuracy": 0.95,
    "confidence_interval_95": [0.76, 0.99],
    "confusion": {"lying": {"lying": 10, "standing": 0}, "standing": {"lying": 1, "standing": 9}},
}
