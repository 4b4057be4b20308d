"""Who asks. Every session has one owner, and nobody sees another owner's."""

from typing import Annotated

from fastapi import Depends

OWNER = "default"
"""The one owner, as there are no keys."""


async def _owner() -> str:
    return OWNER


Owner = Annotated[str, Depends(_owner)]
