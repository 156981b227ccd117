"""What is asked of Prometheus: expressions limited to the jobs and instances that are selected.

Recorded series of a whole job have no instance; what is asked of them is limited to the job alone,
and the panel says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SELECTED: Final = 'job=~"$job", instance=~"$instance"'
QUANTILES: Final = (("0.5", "p50"), ("0.99", "p99"), ("0.999", "p99.9"))


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel.

    Parameters
    ----------
    expr
        PromQL.
    legend
        Name of each series, with labels as `{{label}}`.
    instant
        Whether only the value at the end of the shown time counts.
    exemplars
        Whether the events behind the numbers are shown as points.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    exemplars: bool = False


def of(metric: str, *matchers: str) -> str:
    """Return a metric of the selected instances."""
    return f"{metric}{{{', '.join((SELECTED, *matchers))}}}"


def of_job(record: str) -> str:
    """Return a recorded series of the selected jobs as a whole."""
    return f'{record}{{job=~"$job"}}'


def of_tapewatch(expr: str) -> str:
    """Return what of an expression that every process has comes from tapewatch."""
    return f"({expr}) and on (job, instance) {of('tapewatch_build_info')}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """Return the sum of a counter's rates a second, over all but the labels `by`."""
    return f"{_sum(by)}(rate({of(metric, *matchers)}[$__rate_interval]))"


def rise(metric: str, *matchers: str, by: str = "", over: str = "$__rate_interval") -> str:
    """Return by how much a counter rose, summed over all but the labels `by`."""
    return f"{_sum(by)}(increase({of(metric, *matchers)}[{over}]))"


def buckets(histogram: str, *matchers: str) -> str:
    """Return what fell into each bucket, for a heat map."""
    return rise(f"{histogram}_bucket", *matchers, by="le")


def quantile(q: str, histogram: str, *matchers: str, by: str = "") -> str:
    """Return a quantile of a histogram, each combination of the labels `by` by itself."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', *matchers, by=labels)})"


def quantiles(histogram: str, *matchers: str, exemplars: bool = False) -> list[Query]:
    """Return median, p99 and p99.9 of a histogram."""
    return [
        Query(quantile(q, histogram, *matchers), name, exemplars=exemplars and name == "p99")
        for q, name in QUANTILES
    ]


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"
