"""Sizes, counts, durations and moments as Ollama prints them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_DECIMAL_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_NUMBER_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
FOREVER = timedelta(days=365 * 21)


def human_bytes(nbytes: int) -> str:
    """``4700000000`` -> ``4.7 GB``: decimal units, one decimal below ten unless it is a whole number."""
    for size, unit in _DECIMAL_UNITS:
        if nbytes >= size:
            value = nbytes / size
            return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{nbytes} B"


def human_number(count: int) -> str:
    """``7615616512`` -> ``7.6B``; ``137000000`` -> ``137M``; ``134515008`` -> ``134.52M``."""
    for size, unit in _NUMBER_UNITS:
        if count >= size:
            value = count / size
            decimals = 0 if value == int(value) else {"K": 0, "M": 2}.get(unit, 1)
            return f"{value:.{decimals}f}{unit}"
    return str(count)


def human_duration(elapsed: timedelta) -> str:
    """Roughly how long: ``About a minute``, ``2 hours``, ``3 weeks``."""
    seconds = int(elapsed.total_seconds())
    minutes, hours = seconds // 60, int(elapsed.total_seconds() / 3600 + 0.5)
    days = hours // 24
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    if days < 730:
        return f"{days // 30} months"
    return f"{days // 365} years"


def human_time_of(text: str, now: datetime) -> str:
    """:func:`human_time` of an RFC 3339 moment; ``Never`` for Go's zero time, ``-`` for what is no moment."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return "-"
    if moment.year == 1:
        return "Never"
    return human_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC), now)


def human_time(moment: datetime, now: datetime) -> str:
    """*moment* seen from *now*: ``2 hours ago``, ``4 minutes from now``, ``Forever``. Both are aware."""
    if moment > now:
        ahead = moment - now
        return "Forever" if ahead >= FOREVER else f"{human_duration(ahead)} from now"
    return f"{human_duration(now - moment)} ago"
