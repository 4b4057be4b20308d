"""Session ids: in the order of their making, and impossible to guess."""

import secrets
import time

SESSION_ID_PATTERN = r"^ses_[0-9a-f]{32}$"


def new_session_id() -> str:
    """Make an id: `ses_`, 12 hex digits of Unix milliseconds, 20 random hex digits (80 bits).

    Ids order as text the way they were made, to the millisecond.
    """
    return f"ses_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
