"""From the validation errors of pydantic to issues: a pointer, and words for a person."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from app.errors import Issue

MOST_ISSUES = 20
"""How many issues an answer names: a body may hold thousands of examples with one mistake each."""

INPUT_KINDS = frozenset({"<image>", "<values>"})
"""Tags of the two kinds of input: part of pydantic's locations, but no member of the body."""

_TEXTS = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text, without lone surrogates",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "int_type": "must be an integer",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "too_short": "must hold at least {min_length} element(s)",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


def body_issues(errors: Iterable[Mapping[str, Any]]) -> list[Issue]:
    """Translate pydantic's errors of a body, the first `MOST_ISSUES` of them.

    A check of ours that looks into a value names the place below it, as `pointer` in the error's
    context.
    """
    return [
        Issue(_pointer(error["loc"]) + error.get("ctx", {}).get("pointer", ""), _text(error))
        for error in islice(errors, MOST_ISSUES)
    ]


def parameter_issues(errors: Iterable[Mapping[str, Any]]) -> list[Issue]:
    """Translate FastAPI's errors of a request's parameters; their locations are (kind, name)."""
    return [parameter_issue(str(error["loc"][1]), _text(error)) for error in errors]


def parameter_issue(name: str, detail: str) -> Issue:
    """An issue with a parameter of the query or the header, where no pointer into a body leads."""
    return Issue(f"#/parameters/{escape(name)}", detail)


def _text(error: Mapping[str, Any]) -> str:
    text = _TEXTS.get(error["type"])
    return str(error["msg"]) if text is None else text.format(**error.get("ctx", {}))


def _pointer(location: tuple[str | int, ...]) -> str:
    steps = (step for index, step in enumerate(location) if not _is_kind(location, index))
    return "".join(f"/{escape(str(step))}" for step in steps)


def _is_kind(location: tuple[str | int, ...], index: int) -> bool:
    """Whether a step is a tag: it stands where an input stands, in an example or in the query."""
    if location[index] not in INPUT_KINDS:
        return False
    return location[index - 1] == "input" or (index == 2 and location[0] == "query")


def escape(step: str) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return step.replace("~", "~0").replace("/", "~1")
