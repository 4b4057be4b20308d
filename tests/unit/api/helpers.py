"""What the tests of the HTTP floor share."""

import base64
import time
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from tests.fakes import FakeEngine

POLL_SECONDS = 0.005
MOST_POLLS = 2000


@dataclass
class Device(FakeEngine):
    """The fake engine, with figures for /metrics and a record of how it was stopped."""

    stopped_with: list[float] = field(default_factory=list)

    def stats(self) -> dict[str, float]:
        return {"queue_length": 3.0, "batches_total": 7.0}

    def stop(self, drain_seconds: float) -> None:
        self.stopped_with.append(drain_seconds)
        super().stop(drain_seconds)


def picture(shade: int) -> str:
    """A PNG of 8 x 8 pixels of one shade of grey, in base64."""
    file = BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def check_problem(answer, status: int, code: str) -> dict:
    """Check that an answer is a whole problem document (RFC 9457), and return it."""
    body = answer.json()
    assert answer.status_code == status, body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"urn:innerloop:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert ("errors" in body) == (status == 422)
    assert ("retry-after" in answer.headers) == (status == 503)
    return body


def pointers(answer) -> list[str]:
    """Where a refused request breaks rules."""
    return [error["pointer"] for error in check_problem(answer, 422, "invalid_input")["errors"]]


def wait_until(condition) -> None:
    for _ in range(MOST_POLLS):
        if condition():
            return
        time.sleep(POLL_SECONDS)
    raise AssertionError("it did not happen in time")
