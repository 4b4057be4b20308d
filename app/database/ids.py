"""Session ids: in the order of their making, and impossible to guess."""

import secrets
import time

SESSION_ID_PATTERN = r"^ses_[0-9a-f]{32}$"


def new_session_id() -> str:
    """Make an id: `ses_`, 14 hex digits of Unix microseconds, 18 random hex digits (72 bits).

    Ids order as text the way they were made, to the microsecond.
    """
    return f"ses_{time.time_ns() // 1_000:014x}{secrets.token_hex(9)}"
