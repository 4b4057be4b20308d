"""What `benchmarks.server` compares with: a server as one writes it in an afternoon.

    python -m benchmarks.plain_server PORT MODELS THREADS

`POST /sessions` takes the JSON of a new session, adapts with `higher`, and answers the query: one
request after the other, nothing stored, nothing checked. `POST /nothing` parses its JSON and does
nothing.
"""

import base64
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image
from torch import Tensor

from app.devices import choose_device
from benchmarks.adaptation import bundled, serving_of
from benchmarks.adaptation_peers import Answer, PlainRequest, higher
from benchmarks.server import SHOTS


def _pictures(inputs: list[dict[str, str]]) -> Tensor:
    pixels = [np.asarray(Image.open(BytesIO(base64.b64decode(it["image"])))) for it in inputs]
    return 1 - torch.from_numpy(np.stack(pixels)).unsqueeze(1) / 255


def build(models: Path) -> FastAPI:
    """The application."""
    model = bundled(models)
    answers: dict[int, Answer] = {}
    one_at_a_time = threading.Lock()  # faster than many that share the cores
    app = FastAPI()

    @app.post("/sessions")
    def create(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 - FastAPI's way
        support, query = body["support"], _pictures(body["query"])
        labels = list(dict.fromkeys(example["label"] for example in support))
        request = PlainRequest(
            _pictures([example["input"] for example in support]),
            torch.tensor([labels.index(example["label"]) for example in support]),
            query,
        )
        ways = len(labels)
        with one_at_a_time:
            if ways not in answers:
                answers[ways] = higher(serving_of(model, ways, SHOTS))
            rows = answers[ways](request).tolist()
        return {"predictions": [dict(zip(labels, row, strict=True)) for row in rows]}

    @app.post("/nothing")
    async def nothing(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008, ARG001
        return {}

    return app


if __name__ == "__main__":
    choose_device("cpu")
    torch.set_num_threads(int(sys.argv[3]))
    uvicorn.run(build(Path(sys.argv[2])), port=int(sys.argv[1]), log_level="warning")
