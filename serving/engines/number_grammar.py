"""Grammar rules for JSON numbers within limits, in llama.cpp's GBNF. Pure.

A range is cut into ranges of numbers with equally many digits, and these digit by digit:
[7, 42] is [7-9] | [1-3] [0-9] | "4" [0-2].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_DIGITS = 15
_LARGEST = 10**MAX_DIGITS - 1
_MAX_DECIMALS = 6
# With at least so many values, one more decimal is not worth it.
_ENOUGH = 10


class Unwritable(ValueError):
    """Limits that no number can be written for."""


def integer_rule(limits: Mapping[str, Any]) -> str:
    """`limits` by JSON schema's words. Raises Unwritable."""
    low, high = _limits(limits)
    if low is None and high is None:
        return "integer"
    least = -_LARGEST if low is None else math.ceil(low)
    most = _LARGEST if high is None else math.floor(high)
    if "exclusiveMinimum" in limits:
        least = max(least, math.floor(limits["exclusiveMinimum"]) + 1)
    if "exclusiveMaximum" in limits:
        most = min(most, math.ceil(limits["exclusiveMaximum"]) - 1)
    return f"({' | '.join(_integers(least, most))})"


def number_rule(limits: Mapping[str, Any]) -> str:
    """Whole numbers with up to six decimals where they fit; in a narrow range as many as it takes."""
    low, high = _limits(limits)
    if low is None and high is None:
        return "number"
    least, most = low if low is not None else -float(_LARGEST), high if high is not None else float(_LARGEST)
    rules: list[str] = []
    whole_low, whole_high = math.ceil(least), math.floor(most)
    whole = [n for n in (whole_low, whole_high) if not _excluded(n, limits)]
    if whole_low <= whole_high:
        first = whole_low if whole_low in whole else whole_low + 1
        last = whole_high if whole_high in whole else whole_high - 1
        if first <= last:
            rules += _integers(first, last)
    # n.ddd lies in (n, n + 1) above zero and in (n - 1, n) below.
    if whole_high - 1 >= max(whole_low, 0):
        rules += [f'{part} "." [0-9]{{0,5}} [1-9]' for part in _integers(max(whole_low, 0), whole_high - 1)]
    if whole_low + 1 <= min(whole_high, 0):
        below = _integers(-min(whole_high, 0), -(whole_low + 1))
        rules += [f'"-" {part} "." [0-9]{{0,5}} [1-9]' for part in below]
    if rules:
        return f"({' | '.join(rules)})"
    return f"({' | '.join(_decimals(least, most, limits))})"


def _decimals(least: float, most: float, limits: Mapping[str, Any]) -> list[str]:
    """For a range without a whole number inside: all numbers of the fewest decimals that give some choice."""
    found: tuple[int, int, int] | None = None
    for places in range(1, _MAX_DECIMALS + 1):
        scale = 10**places
        first, last = math.ceil(least * scale - 1e-9), math.floor(most * scale + 1e-9)
        while first <= last and not _within(first / scale, least, most, limits):
            first += 1
        while first <= last and not _within(last / scale, least, most, limits):
            last -= 1
        if first <= last:
            found = (places, first, last)
            if last - first + 1 >= _ENOUGH:
                break
    if found is None:
        raise Unwritable("no number with up to six decimals lies within the limits")
    places, first, last = found
    if first < 0 <= last or first <= 0 < last:
        raise Unwritable("limits this close around zero cannot be enforced")
    sign = '"-" ' if first < 0 else ""
    low, high = (-last, -first) if first < 0 else (first, last)
    ahead, low_digits = divmod(low, 10**places)
    if high // 10**places != ahead:
        raise Unwritable("limits this close around a whole number cannot be enforced")
    digits = _same_length(str(low_digits).zfill(places), str(high % 10**places).zfill(places))
    return [f'{sign}"{ahead}." {part}' for part in digits]


def _within(value: float, least: float, most: float, limits: Mapping[str, Any]) -> bool:
    return least <= value <= most and not _excluded(value, limits)


def _excluded(value: float, limits: Mapping[str, Any]) -> bool:
    return value in (limits.get("exclusiveMinimum"), limits.get("exclusiveMaximum"))


def _limits(limits: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The narrowest of each side; exclusive ones are counted in here and kept out by the caller."""
    for word, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Unwritable(f"{word} must be a number")
        if abs(value) > _LARGEST:
            raise Unwritable(f"{word} is beyond {MAX_DIGITS} digits")
    lows = [limits[word] for word in ("minimum", "exclusiveMinimum") if word in limits]
    highs = [limits[word] for word in ("maximum", "exclusiveMaximum") if word in limits]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        raise Unwritable("the limits exclude every number")
    return low, high


def _integers(least: int, most: int) -> list[str]:
    """Alternatives that together are all integers of [least, most], without leading zeros."""
    if least > most:
        raise Unwritable("the limits exclude every number")
    rules: list[str] = []
    if least < 0:
        rules += [f'"-" {part}' for part in _naturals(max(1, -most), -least)]
    if most >= 0:
        rules += _naturals(max(0, least), most)
    return rules


def _naturals(least: int, most: int) -> list[str]:
    rules: list[str] = []
    for digits in range(len(str(least)), len(str(most)) + 1):
        first = 0 if digits == 1 else 10 ** (digits - 1)
        low, high = max(least, first), min(most, 10**digits - 1)
        rules += _same_length(str(low), str(high))
    return rules


def _same_length(low: str, high: str) -> list[str]:
    """All digit strings of one length from `low` to `high`."""
    if low == high:
        return [f'"{low}"']
    if len(low) == 1:
        return [f"[{low}-{high}]"]
    rest = len(low) - 1
    if low[0] == high[0]:
        return [f'"{low[0]}" {part}' for part in _same_length(low[1:], high[1:])]
    rules: list[str] = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        rules += [f'"{first}" {part}' for part in _same_length(low[1:], "9" * rest)]
        first += 1
    end: list[str] = []
    if high[1:] != "9" * rest:
        end = [f'"{last}" {part}' for part in _same_length("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        head = f'"{first}"' if first == last else f"[{first}-{last}]"
        rules.append(f"{head} [0-9]{{{rest}}}")
    return rules + end
