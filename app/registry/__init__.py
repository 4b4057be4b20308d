"""The models on disk: list, verify, load and save `models/<name>/<version>/`."""

from app.registry.card import AccuracyFigure, Card, InputSpec
from app.registry.registry import LoadedModel, Registry

__all__ = ["AccuracyFigure", "Card", "InputSpec", "LoadedModel", "Registry"]
