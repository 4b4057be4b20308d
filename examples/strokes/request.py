"""Prints a request: five characters of the unseen alphabet to learn, and five drawings to answer.

    python -m examples.strokes.request data/strokes/strokes.npz | curl -s -d @- \
        -H 'Content-Type: application/json' http://127.0.0.1:8000/v1/sessions

The queries are of the same characters in the same order, by other people.
"""

import json
import sys
from typing import Any

import numpy as np

CHARACTERS, SEED = 5, 0


def body(path: str) -> dict[str, Any]:
    """A request body of drawings from the file's test part."""
    with np.load(path) as file:
        inputs, labels, part = (file[name] for name in ("inputs", "labels", "part"))
    rng = np.random.default_rng(SEED)
    support, query = [], []
    for label in rng.permutation(np.unique(labels[part == "test"]))[:CHARACTERS]:
        learnt, asked = rng.permutation(np.flatnonzero(labels == label))[:2]
        support.append({"input": {"values": inputs[learnt].tolist()}, "label": str(label)})
        query.append({"values": inputs[asked].tolist()})
    return {"model": "strokes", "support": support, "query": query, "top": 1}


if __name__ == "__main__":
    print(json.dumps(body(sys.argv[1])))
