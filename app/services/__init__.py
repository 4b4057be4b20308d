"""The use cases: create a session, query it, add to it, measure it. Knows no HTTP."""

from app.services.sessions import SessionService
from app.services.views import (
    Evaluation,
    Example,
    Idempotency,
    ImageInput,
    Input,
    NewSession,
    Page,
    Prediction,
    Predictions,
    SessionView,
    ValuesInput,
    Weights,
)

__all__ = [
    "Evaluation",
    "Example",
    "Idempotency",
    "ImageInput",
    "Input",
    "NewSession",
    "Page",
    "Prediction",
    "Predictions",
    "SessionService",
    "SessionView",
    "ValuesInput",
    "Weights",
]
