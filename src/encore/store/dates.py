"""Dates in records: UTC, ISO 8601. Hashes, identities and comparisons of runs ignore them."""

from __future__ import annotations

from datetime import UTC, date, datetime

from encore.errors import UsageError


def utc_now() -> str:
    """The current time, to the second: `2026-11-28T16:00:00Z`."""
    return utc(datetime.now(UTC))


def utc(moment: datetime) -> str:
    """Format a time with a time zone, in UTC to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def check_date(text: str) -> str:
    """Check a date given by the user.

    Args:
        text: `2026-11-28`, or a time with its zone: `2026-11-28T16:00:00Z`.

    Returns:
        The day as given, or the time in UTC.

    Raises:
        UsageError: the text is neither.
    """
    try:
        if len(text) == len("2026-11-28"):
            return date.fromisoformat(text).isoformat()
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return utc(moment)
    except ValueError:
        pass
    raise UsageError(f"{text!r} is not a date", "write it as 2026-11-28, or with time and zone: 2026-11-28T16:00:00Z")
