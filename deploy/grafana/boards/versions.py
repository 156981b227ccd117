"""Panels of which model is in force where, since when, and what became of newer ones."""

from __future__ import annotations

from .parts import BLUE, GREEN, ORANGE, RED, Panel, Said, lines, number, rows, steps
from .queries import Query, of, of_job, rise


def versions(width: int) -> Panel:
    """Return the names of the models in force."""
    return number(
        Said(
            "Model",
            "Version of the model in force. More than one: the daemons do not score alike.",
            "none",
            ("TapewatchModelRefused", "TapewatchModelOld"),
        ),
        Query(f"count by (version) ({of('tapewatch_model_info')})", "{{version}}", instant=True),
        width=width,
        colours=steps(BLUE),
        none="none loaded",
        trend=False,
        names=True,
    )


def life_now() -> list[Panel]:
    """Return the age of the oldest model in force, and what became of newer ones."""
    day = 86_400
    age = number(
        Said(
            "Age",
            "Since the oldest model in force was trained. Of the whole job.",
            "s",
            ("TapewatchModelOld",),
        ),
        Query(f"max({of_job('job:tapewatch_model_age_seconds:max')})"),
        width=3,
        colours=steps(GREEN, (21 * day, ORANGE), (30 * day, RED)),
        none="unknown",
        trend=False,
    )
    swaps = [
        number(
            Said(title, meaning, "short", alerts),
            Query(
                rise("tapewatch_model_swaps_total", f'outcome="{outcome}"', over="$__range"),
                instant=True,
            ),
            width=3,
            colours=colours,
            none="unknown",
            trend=False,
        )
        for outcome, title, meaning, colours, alerts in (
            ("done", "Swaps", "New models put in force within the time shown.", steps(BLUE), ()),
            (
                "refused",
                "Refused",
                "New models refused within the time shown; the one before goes on. See the log.",
                steps(GREEN, (0.5, RED)),
                ("TapewatchModelRefused",),
            ),
        )
    ]
    return [age, *swaps]


def life() -> list[Panel]:
    """Return who scores with what, how old it is, what became of newer ones, from which offset."""
    return [_models(), _age(), _swaps(), _offsets()]


def _models() -> Panel:
    return rows(
        Said(
            "Models in force",
            "What each daemon scores with, and where. Hashes differ: they do not score alike.",
            "none",
        ),
        Query(of("tapewatch_model_info"), instant=True),
        {"instance": "Daemon", "version": "Version", "hash": "Hash", "device": "Device"},
    )


def _age() -> Panel:
    now = "time() - "
    return lines(
        Said(
            "Age, by daemon",
            "Since the model in force was trained, and since it was put in force.",
            "s",
            ("TapewatchModelOld",),
        ),
        Query(now + of("tapewatch_model_created_timestamp_seconds"), "trained, {{instance}}"),
        Query(now + of("tapewatch_model_loaded_timestamp_seconds"), "in force, {{instance}}"),
    )


def _swaps() -> Panel:
    return lines(
        Said(
            "New models",
            "New models that appeared while running, by what became of them.",
            "short",
            ("TapewatchModelRefused",),
        ),
        Query(rise("tapewatch_model_swaps_total", by="outcome"), "{{outcome}}"),
        stacked=True,
        bars=True,
    )


def _offsets() -> Panel:
    return rows(
        Said(
            "In force from",
            "Offset of each partition from which the model in force scores: what to give to "
            "tapewatch score --changes.",
            "none",
        ),
        Query(of("tapewatch_model_from_offset"), instant=True),
        {"partition": "Partition", "Value": "Offset", "instance": "Daemon"},
    )
