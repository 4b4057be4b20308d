"""The broken rules of one request, gathered so that a caller can mend them all at once."""

from app.errors import InvalidInput, Issue

MAX_ISSUES = 20
"""Most issues in one answer: enough to see a pattern."""


class Issues:
    """Broken rules, in the order they are found."""

    def __init__(self) -> None:
        self._found: list[Issue] = []

    @property
    def full(self) -> bool:
        """Whether looking on is of no more use."""
        return len(self._found) >= MAX_ISSUES

    def add(self, pointer: str, detail: str) -> None:
        """Note a broken rule; beyond `MAX_ISSUES` it is dropped."""
        if not self.full:
            self._found.append(Issue(pointer, detail))

    def raise_any(self) -> None:
        """Raise InvalidInput where a rule was broken."""
        if self._found:
            raise InvalidInput(self._found)
