"""Every error that Innerloop raises on purpose, each with a stable code.

InnerloopError
├── InvalidInput            the caller's input breaks a rule; carries one issue per broken rule
├── InvalidSafetensors      the caller's bytes are no file of tensors
├── NotFound
│   ├── SessionNotFound
│   └── ModelNotFound
├── Gone
│   ├── SessionExpired
│   └── ModelVersionGone
├── IdempotencyConflict
├── Unavailable             try again after `retry_after_seconds`
│   ├── QueueFull
│   ├── Draining
│   ├── NotReady
│   ├── EngineFailed
│   ├── DatabaseUnavailable
│   └── Contention
├── DeviceError             there is no such device
└── JobError                the offline job cannot go on; the message names the file or the setting
    ├── RecipeError
    ├── DataError
    ├── CheckpointError
    ├── RegistryError
    └── Diverged

An error knows nothing of HTTP: `app.api.problems` alone maps classes to statuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class InnerloopError(Exception):
    """The root. `code` is stable and snake_case; the message says what to do next."""

    code = "internal_error"


@dataclass(frozen=True)
class Issue:
    """One broken rule: `pointer` is a JSON pointer (RFC 6901) into the caller's body."""

    pointer: str
    detail: str


class InvalidInput(InnerloopError):
    """The input was understood and breaks a rule of the schema or of the model's limits."""

    code = "invalid_input"

    def __init__(self, issues: Sequence[Issue]):
        self.issues = tuple(issues)
        super().__init__("; ".join(f"{issue.pointer}: {issue.detail}" for issue in self.issues))


class InvalidSafetensors(InnerloopError):
    """The bytes could not be read as the safetensors file that they were said to be."""

    code = "invalid_safetensors"


class NotFound(InnerloopError):
    """There is no such thing for this owner."""

    code = "not_found"


class SessionNotFound(NotFound):
    """No session of this owner has that id."""

    code = "session_not_found"


class ModelNotFound(NotFound):
    """The registry holds no model of that name."""

    code = "model_not_found"


class Gone(InnerloopError):
    """It was there and is no more."""

    code = "gone"


class SessionExpired(Gone):
    """The session's `expires_at` lies in the past."""

    code = "session_expired"


class ModelVersionGone(Gone):
    """The session's model version, or the very θ it was pinned to, left the registry."""

    code = "model_version_gone"


class IdempotencyConflict(InnerloopError):
    """The idempotency key was used before, with another body."""

    code = "idempotency_conflict"


class Unavailable(InnerloopError):
    """Not now: the same request may succeed after `retry_after_seconds`."""

    code = "unavailable"

    def __init__(self, message: str, retry_after_seconds: int = 1):
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class QueueFull(Unavailable):
    """The engine's bounded queue has no room."""

    code = "queue_full"


class Draining(Unavailable):
    """The server is shutting down and takes no new work."""

    code = "draining"


class NotReady(Unavailable):
    """The device is not warm yet."""

    code = "not_ready"


class EngineFailed(Unavailable):
    """The device failed while it held this request."""

    code = "engine_failed"


class DatabaseUnavailable(Unavailable):
    """The database does not answer."""

    code = "database_unavailable"


class Contention(Unavailable):
    """Others changed the same session faster than this request could."""

    code = "contention"


class DeviceError(InnerloopError):
    """The device that was asked for is not there."""

    code = "device_error"


class JobError(InnerloopError):
    """The offline job cannot go on."""

    code = "job_error"


class RecipeError(JobError):
    """The recipe is not valid, or does not fit the data."""

    code = "recipe_error"


class DataError(JobError):
    """A data file is missing or broken; the message names it."""

    code = "data_error"


class CheckpointError(JobError):
    """A checkpoint is missing, broken, or of another recipe."""

    code = "checkpoint_error"


class RegistryError(JobError):
    """A model on disk is broken: the card does not parse, or θ's SHA-256 is another one.

    In the service also: it is of a kind that cannot answer requests.
    """

    code = "registry_error"


class Diverged(JobError):
    """The meta-loss is no longer finite."""

    code = "diverged"
