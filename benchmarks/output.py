"""Where the figures of a benchmark go beside the screen."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Writes what was measured, where `--json` said so."""
    if path:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
