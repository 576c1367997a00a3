"""Times as people write them: 90s, 45m, 11h30m."""

from __future__ import annotations

import re

_PATTERN = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")


class DurationError(ValueError):
    """A text that is not a duration."""


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as `90s`, `45m`, `2h`, `11h30m`; raise DurationError otherwise."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise DurationError("write hours, minutes and seconds with their letters, e.g. 90s, 45m, 11h30m")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise DurationError("must be above 0")
    return total
