"""Brace lists, which stand for the names of many shards: ``faces-{000000..000009}.tar``."""

from __future__ import annotations

import re

from dcgan_dist.errors import DataError

_MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern with any number of braces of the forms ``a-{08..10}`` and ``{a,b}-c``.

    Raises:
        DataError: a brace has another form, or there are too many names.
    """
    match = _BRACES.search(pattern)
    before = pattern if match is None else pattern[: match.start()]
    if "{" in before or "}" in before:
        raise DataError(f"{pattern!r} has an open brace, or one in another: write NAME-{{000000..000009}}.tar")
    if match is None:
        return [pattern]
    if numbers := _RANGE.fullmatch(match[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < _MOST_SHARDS:
            raise DataError(f"{pattern!r}: {match[0]} is no range of fewer than {_MOST_SHARDS} numbers that goes up")
        is_padded = any(len(number) > 1 and number.startswith("0") for number in numbers.groups())
        width = max(map(len, numbers.groups())) if is_padded else 0
        parts = [str(number).zfill(width) for number in range(first, last + 1)]
    elif "," in match[1]:
        parts = match[1].split(",")
    else:
        raise DataError(f"{pattern!r}: {match[0]} is no range such as {{000000..000009}} and no list such as {{a,b}}")
    rests = expand_braces(pattern[match.end() :])
    if len(parts) * len(rests) > _MOST_SHARDS:
        raise DataError(f"{pattern!r} stands for more than {_MOST_SHARDS} shards")
    return [before + part + rest for part in parts for rest in rests]
