"""The device: its lanes own it; requests from many callers queue for them and share batches."""

from app.engine.engine import FIGURES, Engine
from app.engine.requests import Adapted, ModelKey, PhiMissing, SupportSet

__all__ = ["FIGURES", "Adapted", "Engine", "ModelKey", "PhiMissing", "SupportSet"]
