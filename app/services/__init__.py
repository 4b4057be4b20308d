"""The use cases: create a session, query it, add to it, measure it. Knows no HTTP."""

from app.services.models import ServedModels
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
    "ServedModels",
    "SessionService",
    "SessionView",
    "ValuesInput",
    "Weights",
]
