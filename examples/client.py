"""Makes a personal classifier of five invented characters, and asks it about new drawings.

    python examples/client.py [http://127.0.0.1:8000]

It needs nothing but Python's standard library and a running `make serve`.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

DRAWINGS = Path(__file__).parent / "drawings"
CHARACTERS = ("anchor", "kite", "snail", "comb", "bolt")


def picture(character: str, hand: int) -> dict[str, str]:
    """The input of one drawing."""
    content = (DRAWINGS / f"{character}-{hand}.png").read_bytes()
    return {"image": base64.b64encode(content).decode()}


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Sends JSON and returns the answer's."""
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=30) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


def main(server: str) -> None:
    """One drawing of each character makes the model; two more of each are the query."""
    support = [{"input": picture(name, 1), "label": name} for name in CHARACTERS]
    session = post(f"{server}/v1/sessions", {"support": support, "ttl_seconds": 3600})
    print("support loss", " ".join(f"{loss:.3f}" for loss in session["support_loss"]))

    asked = [(name, hand) for name in CHARACTERS for hand in (2, 3)]
    query = {"query": [picture(name, hand) for name, hand in asked]}
    answer = post(f"{server}/v1/sessions/{session['id']}/predictions", query)
    for (name, hand), prediction in zip(asked, answer["data"], strict=True):
        print(f"{name}-{hand}: {prediction['label']} {prediction['probability']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
