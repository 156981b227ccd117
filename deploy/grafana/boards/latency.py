"""The board of latencies: the objective, tick to event, every stage, batching, and what waits."""

from __future__ import annotations

from typing import Final

from .board import Board
from .parts import GREEN, ORANGE, RED, Panel, Said, heat, lines, number, steps
from .queries import QUANTILES, Query, of, of_job, quantile, quantiles, rate

STAGES: Final = ("batching", "decode", "features", "scoring", "publishing", "committing")
_TICK_TO_EVENT: Final = "tapewatch_tick_to_event_seconds"
_STAGE: Final = "tapewatch_stage_duration_seconds"
_WAIT: Final = "tapewatch_batch_wait_seconds"
_TICKS: Final = "tapewatch_micro_batch_ticks"
_OBJECTIVE_S: Final = 0.2
_LATE: Final = ("TapewatchLateEventsFast", "TapewatchLateEventsSlow")
_BUDGET: Final = 0.01
"""Share of events that may be late."""


def latency() -> Board:
    """Return the board."""
    board = Board(
        "tapewatch-latency",
        "tapewatch / Latency",
        "Where the time from a tick to its event goes: stage by stage, in batching, in Kafka.",
    )
    board.row("Tick to event", *_now(), _late_share(), _tick_to_event(), _objective(), _heat())
    board.row("Stages of a micro-batch", *_stages(), _time_by_stage())
    board.row("Stages, as heat maps", *_stage_heats())
    board.row("Batching", _wait(), _wait_heat(), _batch_ticks(), _batches())
    board.row("Waiting in Kafka", _lag(), _lag_seconds(), _round_trips(), _queues())
    return board


def _now() -> list[Panel]:
    return [
        number(
            Said(
                f"Tick to event, {name}",
                "From the tick's time to the event's acknowledgement by Kafka. No value: no event "
                "in the last minutes.",
                "s",
                _LATE if name == "p99" else (),
            ),
            Query(quantile(q, _TICK_TO_EVENT)),
            width=6,
            colours=steps(GREEN, (_OBJECTIVE_S / 2, ORANGE), (_OBJECTIVE_S, RED)),
            none="no events",
        )
        for q, name in QUANTILES
    ]


def _late_share() -> Panel:
    late = of_job("job:tapewatch_tick_to_event_late_per_events:ratio_rate1h")
    return number(
        Said(
            "Late events, last hour",
            "Share of the events that came later than 200 ms after their tick, or stale; the "
            "objective allows 1 %. Of the whole job.",
            "percentunit",
            _LATE,
        ),
        Query(f"max({late})"),
        width=6,
        colours=steps(GREEN, (_BUDGET, ORANGE), (14.4 * _BUDGET, RED)),
        none="no events",
    )


def _tick_to_event() -> Panel:
    return lines(
        Said(
            "Tick to event",
            "From the tick's time to the event's acknowledgement by Kafka; dashed, the objective "
            "for 99 %. Points are events: hover for the first digits of the event_id, under which "
            "the topic of anomalies has it.",
            "s",
            _LATE,
        ),
        *quantiles(_TICK_TO_EVENT, exemplars=True),
        limits=[(_OBJECTIVE_S, RED)],
        logarithmic=True,
    )


def _objective() -> Panel:
    record = "job:tapewatch_tick_to_event_late_per_events:ratio_rate"
    return lines(
        Said(
            "How fast the latency budget is spent",
            "Late events over the 1 % that may be, over windows of an hour, six hours and three "
            "days: at 1 the budget lasts just as long as it should. Of the whole job; dashed, "
            "where it pages.",
            "short",
            _LATE,
        ),
        *(
            Query(f"max({of_job(record + window)}) / {_BUDGET}", window)
            for window in ("1h", "6h", "3d")
        ),
        limits=[(1, ORANGE), (14.4, RED)],
    )


def _heat() -> Panel:
    return heat(
        Said(
            "Tick to event, all events",
            "How many events took how long. Two bands: two kinds of load, or two clocks.",
            "s",
        ),
        _TICK_TO_EVENT,
        width=24,
    )


def _stages() -> list[Panel]:
    return [
        lines(
            Said(
                f"{name} of each stage",
                "Time that a micro-batch spent in one stage: waiting for its ticks (batching), "
                "bytes to ticks (decode), windows (features), both networks and thresholds "
                "(scoring), handing over to Kafka's client (publishing), state and transaction "
                "(committing).",
                "s",
                ("TapewatchLagGrowing",) if name == "p99" else (),
            ),
            Query(quantile(q, _STAGE, by="stage"), "{{stage}}"),
            width=6,
            logarithmic=True,
        )
        for q, name in QUANTILES
    ]


def _time_by_stage() -> Panel:
    return lines(
        Said(
            "Where the time goes",
            "Seconds a second that all micro-batches together spent in each stage but batching, "
            "which is waiting. Near one a daemon: no more ticks fit in.",
            "percentunit",
            ("TapewatchLagGrowing",),
        ),
        Query(rate(f"{_STAGE}_sum", 'stage!="batching"', by="stage"), "{{stage}}"),
        width=6,
        stacked=True,
    )


def _stage_heats() -> list[Panel]:
    return [
        heat(
            Said(
                f"Stage {stage}",
                f"How many micro-batches spent how long in the stage {stage}.",
                "s",
            ),
            _STAGE,
            f'stage="{stage}"',
            width=8,
        )
        for stage in STAGES
    ]


def _wait() -> Panel:
    return lines(
        Said(
            "Batching delay",
            "How long the first tick of a micro-batch waited for others before it was decoded; "
            "batch.max_delay_ms bounds it.",
            "s",
        ),
        *quantiles(_WAIT),
        logarithmic=True,
    )


def _wait_heat() -> Panel:
    return heat(Said("Batching delay, all", "How many micro-batches waited how long.", "s"), _WAIT)


def _batch_ticks() -> Panel:
    return heat(
        Said(
            "Ticks in a micro-batch",
            "How many ticks micro-batches had. Near batch.max_size there is no slack left.",
            "short",
        ),
        _TICKS,
    )


def _batches() -> Panel:
    return lines(
        Said("Micro-batches", "Micro-batches a second, of all daemons and of each.", "cps"),
        Query(rate(f"{_TICKS}_count"), "all"),
        Query(rate(f"{_TICKS}_count", by="instance"), "{{instance}}"),
    )


def _lag() -> Panel:
    return lines(
        Said(
            "Lag by partition",
            "Messages not yet processed, of the ten partitions where they are most.",
            "short",
            ("TapewatchLagGrowing",),
        ),
        Query(
            f"topk(10, max by (partition) ({of('tapewatch_consumer_lag_messages')}))",
            "partition {{partition}}",
        ),
    )


def _lag_seconds() -> Panel:
    waiting = f"sum by (instance) ({of('tapewatch_consumer_lag_messages')})"
    consumed = rate("tapewatch_messages_total", by="instance")
    return lines(
        Said(
            "Lag in seconds, by daemon",
            "Messages not yet processed, in seconds of the daemon's present consumption; a day "
            "where some wait and none is consumed. Dashed, where it pages if it grows.",
            "s",
            ("TapewatchLagGrowing",),
        ),
        Query(f"clamp_max({waiting} / clamp_min({consumed}, 1e-3), 86400)", "{{instance}}"),
        limits=[(5, RED)],
    )


def _round_trips() -> Panel:
    worst = f"max by (client, quantile) ({of('tapewatch_kafka_round_trip_seconds')})"
    return lines(
        Said(
            "Round trips to Kafka",
            "The worst broker's round trip, by quantile. A consumer's contains the wait of a fetch "
            "for new messages; a slow producer's delays every event.",
            "s",
        ),
        Query(worst, "{{client}} {{quantile}}"),
        logarithmic=True,
    )


def _queues() -> Panel:
    waiting = f"sum by (client) ({of('tapewatch_kafka_fetch_queue_messages')})"
    return lines(
        Said(
            "Waiting in Kafka's client",
            "Messages fetched and not yet taken (consumer), or to be sent (producer). A consumer's "
            "that stays full: the daemon is the narrow place, not Kafka.",
            "short",
        ),
        Query(waiting, "{{client}}"),
    )
