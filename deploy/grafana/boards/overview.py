"""The first board at night: is it healthy, is it keeping up, what did it find."""

from __future__ import annotations

from typing import Final

from .board import Board
from .findings import HOUR, HOUR_RATIO, ON_BUDGET, alarms_against_budget, severities
from .parts import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Panel,
    Said,
    bound,
    in_unit,
    lines,
    number,
    rows,
    states,
    steps,
    words,
)
from .queries import Query, of, of_job, of_tapewatch, quantile, rate, rise
from .versions import versions

_OBJECTIVE_S: Final = 0.2


def overview() -> Board:
    """Return the board."""
    board = Board(
        "tapewatch-overview",
        "tapewatch / Overview",
        "Is tapewatch healthy, is it keeping up, and what did it find. Start here.",
    )
    board.row("Now", *_health(), *_findings())
    board.row("Is it keeping up?", _ticks(), _lag(), _latency())
    board.row("What did it find?", _open_episodes(), alarms_against_budget(8), severities(8))
    board.row("Is it healthy?", _ready(), _failures(), _memory(), _cores())
    return board


def _health() -> list[Panel]:
    # `up` of all jobs that have had a daemon: one that is down has no tapewatch_ready to count.
    known = f"{of('up')} and on (job) last_over_time({of('tapewatch_ready')}[1h])"
    ready = number(
        Said(
            "Ready",
            "Share of the daemons that process ticks, as /readyz says; one that Prometheus cannot "
            "scrape counts as not ready. The timeline below says which.",
            "percentunit",
            ("TapewatchNotReady", "TapewatchDown", "TapewatchAbsent"),
        ),
        Query(f"(sum({of('tapewatch_ready')}) or vector(0)) / count({known})"),
        width=3,
        colours=steps(RED, (0.01, ORANGE), (1.0, GREEN)),
        none="NO DAEMON",
    )
    brokers = number(
        Said(
            "Brokers",
            "Kafka brokers that the worst connected client is connected to, of consumers and "
            "producers. A client connects only to brokers it has business with.",
            "short",
            ("TapewatchNotReady",),
        ),
        Query(f"min({of('tapewatch_kafka_brokers_up')})"),
        width=2,
        colours=steps(RED, (1, GREEN)),
        none="unknown",
    )
    lag = number(
        Said(
            "Lag",
            "Messages not yet processed, in seconds of the present consumption; a day where some "
            "wait and none is consumed.",
            "s",
            ("TapewatchLagGrowing",),
        ),
        Query(_lag_seconds()),
        width=3,
        colours=steps(GREEN, (1, ORANGE), (5, RED)),
        none="no partitions",
    )
    ticks = number(
        Said(
            "Ticks",
            "Ticks decoded a second. Zero is only well while the market is closed.",
            "cps",
            ("TapewatchNoTicks",),
        ),
        Query(rate("tapewatch_ticks_total")),
        width=3,
        colours=steps(ORANGE, (1e-9, BLUE)),
        none="unknown",
    )
    return [ready, brokers, lag, ticks]


def _findings() -> list[Panel]:
    started = of("process_start_time_seconds")
    stale = number(
        Said(
            "Stale events",
            "Events within the time shown whose tick was older than 60 s or had no time: the feed "
            "is late, a backlog is worked off, or a clock is wrong. They are in no latency.",
            "short",
            ("TapewatchLateEventsFast", "TapewatchLateEventsSlow"),
        ),
        Query(rise("tapewatch_tick_to_event_stale_total", over="$__range"), instant=True),
        width=2,
        colours=steps(GREEN, (0.5, ORANGE)),
        none="unknown",
        trend=False,
    )
    restarts = number(
        Said(
            "Restarts",
            "Times that a daemon was started anew within the time shown. Its partitions rest "
            "until their state is read.",
            "short",
            ("TapewatchRestarting",),
        ),
        Query(f"sum({of_tapewatch(f'changes({started}[$__range])')})", instant=True),
        width=2,
        colours=steps(GREEN, (1, ORANGE), (3, RED)),
        none="unknown",
        trend=False,
    )
    return [_alarms(), _open_count(), stale, restarts, versions(3)]


def _alarms() -> Panel:
    panel = number(
        Said(
            "Alarms, last hour",
            "Episodes opened within an hour, and what share that is of the alarms that the model's "
            "thresholds were set for. Of the whole job; without a budget there is no share.",
            "short",
            ON_BUDGET,
        ),
        Query(f"sum({of_job(HOUR)})", "alarms"),
        Query(f"max({of_job(HOUR_RATIO)})", "of budget"),
        width=4,
        colours=steps(BLUE),
        none="no budget",
        trend=False,
    )
    return in_unit(panel, "of budget", "percentunit", steps(GREEN, (1.5, ORANGE), (3, RED)))


def _open_count() -> Panel:
    return number(
        Said(
            "Open episodes",
            "Anomalies that go on now, in all instruments. The table below names the worst.",
            "short",
        ),
        Query(f"sum({of('tapewatch_open_episodes')})"),
        width=2,
        colours=steps(BLUE),
        none="no partitions",
    )


def _lag_seconds() -> str:
    waiting = f"sum({of('tapewatch_consumer_lag_messages')})"
    consumed = rate("tapewatch_messages_total")
    return f"clamp_max({waiting} / clamp_min({consumed}, 1e-3), 86400)"


def _ticks() -> Panel:
    return lines(
        Said(
            "Ticks",
            "Ticks a second: decoded, scored, dropped for their data, and those whose latent was "
            "published, where that is asked for. Scored stays below decoded while instruments "
            "warm up.",
            "cps",
            ("TapewatchNoTicks", "TapewatchTicksDropped"),
        ),
        Query(rate("tapewatch_ticks_total"), "decoded"),
        Query(rate("tapewatch_ticks_scored_total"), "scored"),
        Query(rate("tapewatch_ticks_dropped_total"), "dropped"),
        Query(f"{rate('tapewatch_latents_total')} > 0", "latents published"),
        width=8,
    )


def _lag() -> Panel:
    panel = lines(
        Said(
            "Lag",
            "Messages not yet processed: of all partitions, of the worst one, and in seconds of "
            "the present consumption. One partition far above the rest: look at its daemon.",
            "short",
            ("TapewatchLagGrowing",),
        ),
        Query(f"sum({of('tapewatch_consumer_lag_messages')})", "all partitions"),
        Query(f"max({of('tapewatch_consumer_lag_messages')})", "worst partition"),
        Query(_lag_seconds(), "seconds"),
        width=8,
    )
    return in_unit(panel, "seconds", "s", steps(GREEN))


def _latency() -> Panel:
    return lines(
        Said(
            "Tick to event",
            "From the tick's time to the event's acknowledgement by Kafka; dashed, the objective "
            "that 99 % of events keep. Points are events: hover for the event_id.",
            "s",
            ("TapewatchLateEventsFast", "TapewatchLateEventsSlow"),
        ),
        Query(quantile("0.5", "tapewatch_tick_to_event_seconds"), "p50"),
        Query(quantile("0.99", "tapewatch_tick_to_event_seconds"), "p99", exemplars=True),
        width=8,
        limits=[(_OBJECTIVE_S, RED)],
        logarithmic=True,
    )


def _open_episodes() -> Panel:
    return rows(
        Said(
            "Worst open episodes",
            "The open episodes of highest severity: score over threshold at the peak. Twenty at "
            "most; the topic of anomalies has all.",
            "short",
        ),
        Query(f"topk(20, {of('tapewatch_open_episode_severity')})", instant=True),
        {"symbol": "Instrument", "type": "Looks like", "Value": "Severity", "instance": "Daemon"},
        colours=steps(BLUE, (2, ORANGE), (4, RED)),
        width=8,
    )


def _ready() -> Panel:
    return states(
        Said(
            "Ready, by daemon",
            "What /readyz said; it gives the reason in words. A gap: no answer at all.",
            "none",
            ("TapewatchNotReady", "TapewatchDown"),
        ),
        Query(of("tapewatch_ready"), "{{instance}}"),
        words({"1": ("ready", GREEN), "0": ("not ready", RED)}),
    )


def _failures() -> Panel:
    return lines(
        Said(
            "Failures",
            "What went wrong, and when. Refused records end the daemon, dead letters are not "
            "watched; the rest is tried again, and bad only where it goes on.",
            "short",
            ("TapewatchPublishFailures", "TapewatchCommitFailures", "TapewatchDeadLetters"),
        ),
        Query(rise("tapewatch_publish_failures_total"), "records refused by Kafka"),
        Query(rise("tapewatch_commit_failures_total"), "commits failed"),
        Query(rise("tapewatch_dead_letters_total"), "dead letters"),
        Query(rise("tapewatch_kafka_timeouts_total"), "requests without an answer"),
        Query(rise("tapewatch_kafka_request_errors_total"), "requests failed"),
        Query(rise("tapewatch_kafka_retries_total"), "requests sent again"),
        Query(rise("tapewatch_kafka_rebalances_total"), "rebalances"),
        Query(rise("tapewatch_rebalances_total", 'kind="lost"'), "partitions lost"),
        bars=True,
        stacked=True,
    )


def _memory() -> Panel:
    limit = f"max by (instance) ({of('tapewatch_memory_limit_bytes')})"
    resident = of_tapewatch(of("process_resident_memory_bytes"))
    panel = lines(
        Said(
            "Memory",
            "Resident memory of each daemon, the limit of its control group where it has one, at "
            "which the kernel ends it, and what is allocated on a GPU where there is one.",
            "bytes",
            ("TapewatchMemoryNearLimit",),
        ),
        Query(resident, "{{instance}}"),
        Query(limit, "limit of {{instance}}"),
        Query(of("tapewatch_gpu_memory_bytes"), "GPU, {{instance}}"),
    )
    return bound(panel, "/^limit of/")


def _cores() -> Panel:
    used = f"rate({of('process_cpu_seconds_total')}[$__rate_interval])"
    return lines(
        Said(
            "Processor time",
            "Cores that each daemon keeps busy. Close to one at a growing lag: it is at its end; "
            "give it fewer partitions.",
            "short",
        ),
        Query(of_tapewatch(used), "{{instance}}"),
    )
