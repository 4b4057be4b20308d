"""The device: one thread owns it; requests from many callers queue for it and share batches."""

from app.engine.engine import Engine
from app.engine.requests import Adapted, ModelKey, PhiMissing, SupportSet

__all__ = ["Adapted", "Engine", "ModelKey", "PhiMissing", "SupportSet"]
