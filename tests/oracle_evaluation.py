"""Slow, obvious versions of what an evaluation counts, in whole seconds and plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Interval = tuple[int, int]
"""Start and end, both inclusive, in seconds."""


def episodes(
    seconds: Sequence[int], score: Sequence[float], threshold: float, ratio: float, quiet: int
) -> list[Interval]:
    """Episodes of one instrument: opening, and the last tick that kept it open."""
    found: list[Interval] = []
    is_open = False
    for at, value in zip(seconds, score, strict=True):
        if is_open and at - found[-1][1] >= quiet:
            is_open = False
        if not is_open and value >= threshold:
            found.append((at, at))
            is_open = True
        elif is_open and value >= ratio * threshold:
            found[-1] = (found[-1][0], at)
    return found


def verdicts(opened: Sequence[Interval], anomalies: Sequence[Interval]) -> list[str]:
    """Hit, masked or false, episode by episode, of one instrument."""
    told: set[Interval] = set()
    words = []
    for place, (start, _) in enumerate(opened):
        inside = [one for one in anomalies if one[0] <= start <= one[1] + 1]
        if not inside:
            words.append("false")
            continue
        fresh = all(start - end >= 60 for _, end in opened[:place])
        if fresh and inside[-1] not in told:
            told.add(inside[-1])
            words.append("hit")
        else:
            words.append("masked")
    return words


def clean_seconds(
    seconds: Sequence[int], opened: Sequence[Interval], anomalies: Sequence[Interval], gap: int
) -> tuple[int, int]:
    """Clean trading seconds, and those of them in alarm: each second between two ticks alone."""
    clean = in_alarm = 0
    for before, after in pairwise(seconds):
        if after - before > gap:
            continue
        for second in range(before, after):
            if any(start <= second < end + 1 for start, end in anomalies):
                continue
            clean += 1
            in_alarm += any(start <= second < end for start, end in opened)
    return clean, in_alarm
