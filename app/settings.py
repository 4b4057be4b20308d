"""Every setting of the service, read once from the environment and passed down.

Each is an environment variable with the prefix `INNERLOOP_`; units stand in the names.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """The service's settings, with their defaults."""

    model_config = SettingsConfigDict(
        env_prefix="INNERLOOP_", frozen=True, env_ignore_empty=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on."""
    data_dir: Path = Path("data")
    """Folder for the SQLite file and the data sets' caches."""
    models_dir: Path = Path("models")
    """The registry: a folder of models, each with its versions."""
    database_url: str = ""
    """sqlite:///... or postgresql://...; where empty, a SQLite file under the data folder."""
    default_model: str = "omniglot"
    """The model of a session that names none."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where the engine computes: auto (the first GPU, else the CPU), cpu or cuda[:n]."""
    log_format: Literal["json", "console"] = "json"
    """How log lines are written: json or console."""

    max_body_bytes: int = Field(16 * MEBIBYTE, ge=1024)
    """Largest request body, in bytes."""
    max_image_pixels: int = Field(4_194_304, ge=1)
    """Largest image, in pixels before it is resized."""
    max_classes: int = Field(128, ge=2)
    """Most distinct labels of a session."""
    max_support: int = Field(1024, ge=2)
    """Most support examples of a session, all its revisions together."""
    max_query: int = Field(1024, ge=1)
    """Most queries (or evaluation examples) in one request."""
    max_steps: int = Field(10, ge=1)
    """Most inner steps of a session."""
    max_metadata_bytes: int = Field(16_384, ge=2)
    """Largest metadata of a session, in bytes of JSON."""
    max_ttl_seconds: int = Field(366 * 86_400, ge=1)
    """Longest time to live that a session may ask for, in seconds."""
    queue_limit: int = Field(256, ge=1)
    """Most requests that wait for the device; beyond it a request gets 503."""
    batch_limit: int = Field(64, ge=1)
    """Most requests that share one batch on the device; a CPU computes each adaptation alone."""
    phi_cache_bytes: int = Field(512 * MEBIBYTE, ge=0)
    """Bytes of the cache of adapted weights φ on the device; with 0 every query adapts anew."""
    deadline_seconds: float = Field(30.0, gt=0)
    """Longest single wait for the device, in seconds; few requests need more than one."""
    drain_seconds: float = Field(20.0, ge=0)
    """How long a shutdown waits for the requests in flight, in seconds."""
    idempotency_seconds: int = Field(86_400, ge=1)
    """How long an Idempotency-Key is remembered, in seconds."""
    sweep_seconds: float = Field(300.0, gt=0)
    """Time between two sweeps that erase what has expired, in seconds."""

    @model_validator(mode="after")
    def _default_database(self) -> Self:
        if not self.database_url:
            path = (self.data_dir / "innerloop.db").absolute()
            object.__setattr__(self, "database_url", f"sqlite:///{path}")
        return self
