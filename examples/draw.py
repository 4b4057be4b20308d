"""Draws the invented characters of the examples, each by several unsteady hands.

    python examples/draw.py

writes `drawings/<character>-<hand>.png` and the request bodies `session.json` (one drawing of each
character as the support set, another of each as the query) and `query.json` (a third of each). The
same drawings come out each time.
"""

import base64
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 105
"""Side of a drawing in pixels."""
FINE = 4
"""Drawings are made so many times larger and then reduced, for smooth strokes."""
HERE = Path(__file__).parent

Stroke = list[tuple[float, float]]


def circle(x: float, y: float, radius: float, begin: float = 0, end: float = 360) -> Stroke:
    """Points of an arc around (x, y), in a unit square; angles in degrees."""
    angles = [math.radians(begin + (end - begin) * step / 24) for step in range(25)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


TEETH = [[(x, 0.3), (x, 0.75)] for x in (0.2, 0.4, 0.6, 0.8)]
DIAMOND = [(0.5, 0.15), (0.75, 0.4), (0.5, 0.65), (0.25, 0.4), (0.5, 0.15)]
CHARACTERS: dict[str, list[Stroke]] = {
    "anchor": [
        [(0.5, 0.2), (0.5, 0.8)],
        circle(0.5, 0.55, 0.28, 20, 160),
        [(0.35, 0.35), (0.65, 0.35)],
    ],
    "kite": [DIAMOND, [(0.5, 0.65), (0.6, 0.85)]],
    "snail": [
        circle(0.45, 0.45, 0.12),
        circle(0.45, 0.45, 0.26, 90, 360),
        [(0.45, 0.71), (0.85, 0.71)],
    ],
    "comb": [[(0.2, 0.3), (0.8, 0.3)], *TEETH],
    "bolt": [[(0.6, 0.12), (0.32, 0.5), (0.62, 0.5), (0.36, 0.88)]],
}


def draw(character: str, hand: int) -> Image.Image:
    """One drawing of a character: its strokes, leaning and shaking by the hand's own measure."""
    rng = random.Random(f"{character} {hand}")  # noqa: S311 - drawings, not secrets
    lean, width, height = rng.uniform(-0.18, 0.18), rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1)
    image = Image.new("L", (SIZE * FINE, SIZE * FINE), 255)
    pen = ImageDraw.Draw(image)
    for stroke in CHARACTERS[character]:
        shift_x, shift_y = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)
        points = [
            (
                0.5 + width * (x - 0.5) + lean * (0.5 - y) + shift_x + rng.gauss(0, 0.006),
                0.5 + height * (y - 0.5) + shift_y + rng.gauss(0, 0.006),
            )
            for x, y in stroke
        ]
        scaled = [(SIZE * FINE * x, SIZE * FINE * y) for x, y in points]
        pen.line(scaled, fill=0, width=3 * FINE, joint="curve")
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def encode(path: Path) -> dict[str, str]:
    """A picture as the input of a request."""
    return {"image": base64.b64encode(path.read_bytes()).decode()}


def main() -> None:
    """Writes the drawings and the request bodies."""
    folder = HERE / "drawings"
    folder.mkdir(exist_ok=True)
    paths = {}
    for character in CHARACTERS:
        for hand in (1, 2, 3):
            path = paths[character, hand] = folder / f"{character}-{hand}.png"
            draw(character, hand).convert("1", dither=Image.Dither.NONE).save(path)
    support = [{"input": encode(paths[name, 1]), "label": name} for name in CHARACTERS]
    asked = [encode(paths[name, 2]) for name in CHARACTERS]
    session = {"support": support, "query": asked, "top": 2}
    query = {"query": [encode(paths[name, 3]) for name in CHARACTERS], "top": 1}
    (HERE / "session.json").write_text(json.dumps(session, indent=1) + "\n", encoding="utf-8")
    (HERE / "query.json").write_text(json.dumps(query, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
