"""How panels look: one function for each kind, each of which asks for a title and a description.

Widths and heights are in Grafana's units: 24 columns across, 30 pixels down. Colours mean the same
everywhere: green is well, orange wants a look by day, red at night; blue says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .queries import Query, buckets

RUNBOOK: Final = "https://example.com/tapewatch/docs/runbook.md"
"""Where `docs/runbook.md` can be read; put yours here and run `make dashboards`."""

DATASOURCE: Final = common_models.DataSourceRef("prometheus", "${datasource}")
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"

Panel = (
    timeseries.Panel
    | stat.Panel
    | heatmap.Panel
    | table.Panel
    | statetimeline.Panel
    | bargauge.Panel
)
_P = TypeVar(
    "_P",
    timeseries.Panel,
    stat.Panel,
    heatmap.Panel,
    table.Panel,
    statetimeline.Panel,
    bargauge.Panel,
)
Steps = Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Said:
    """What a panel says of itself.

    Parameters
    ----------
    title
        What is shown.
    description
        What it means, and what to do where it is not well.
    unit
        Grafana's name of the unit.
    alerts
        Alerts that watch the same; each becomes a link into the runbook.
    """

    title: str
    description: str
    unit: str
    alerts: tuple[str, ...] = ()


def steps(base: str, *above: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Return colours by value: `base`, and from each value on the one beside it."""
    found = [models.Threshold(None, base), *(models.Threshold(v, colour) for v, colour in above)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def words(meanings: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    """Return a mapping of values to a text and a colour."""
    return models.ValueMap(
        {
            value: models.ValueMappingResult(text, colour)
            for value, (text, colour) in meanings.items()
        }
    )


def number(
    said: Said,
    *queries: Query,
    width: int,
    colours: dashboard.ThresholdsConfig,
    none: str,
    trend: bool = True,
    names: bool = False,
) -> stat.Panel:
    """Return one number, or few, coloured by value.

    Parameters
    ----------
    said, queries
        What it says of itself, and what is asked.
    width
        In columns.
    colours
        By value.
    none
        What is shown where there is nothing; it says what that means.
    trend
        Whether its way to where it is now is drawn behind it.
    names
        Whether the series' names are the message, not their values.
    """
    modes = common_models.BigValueTextMode
    mode = modes.NAME if names else modes.VALUE_AND_NAME if len(queries) > 1 else modes.VALUE
    graph = common_models.BigValueGraphMode
    panel = (
        stat.Panel()
        .span(width)
        .height(4)
        .thresholds(colours)
        .no_value(none)
        .color_mode(common_models.BigValueColorMode.BACKGROUND)
        .graph_mode(graph.AREA if trend else graph.NONE)
        .text_mode(mode)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _describe(panel, said, queries)


def lines(
    said: Said,
    *queries: Query,
    width: int = 12,
    limits: Steps = (),
    stacked: bool = False,
    bars: bool = False,
    logarithmic: bool = False,
    most: float | None = None,
) -> timeseries.Panel:
    """Return curves over time.

    Parameters
    ----------
    said, queries, width
        As for a number.
    limits
        Values at which a dashed line of that colour is drawn.
    stacked, bars
        Whether the series add up; whether each value is a bar, as counts of rare events are.
    logarithmic
        Whether the axis is; zero has no place on it.
    most
        Upper end of the axis.
    """
    panel = (
        timeseries.Panel()
        .span(width)
        .height(8)
        .line_width(1)
        .fill_opacity(60 if bars else 25 if stacked else 5)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(_tooltip())
    )
    if bars:
        panel.draw_style(common_models.GraphDrawStyle.BARS)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG)
        panel.scale_distribution(scale.log(10))
    else:
        panel.min(0)
    if most is not None:
        panel.max(most)
    if limits:
        dashed = common_models.GraphThresholdsStyleMode.DASHED
        panel.thresholds(steps("transparent", *limits))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(dashed))
    return _describe(panel, said, queries)


def heat(said: Said, histogram: str, *matchers: str, width: int = 12) -> heatmap.Panel:
    """Return how a histogram's values were distributed over time."""
    colour = (
        heatmap.HeatmapColorOptions()
        .mode(heatmap_models.HeatmapColorMode.SCHEME)
        .scheme("Spectral")
        .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
        .exponent(0.4)  # few values far out are what is looked for
        .steps(64)
        .reverse(False)
    )
    panel = (
        heatmap.Panel()
        .span(width)
        .height(8)
        .calculate(False)
        .color(colour)
        .y_axis(heatmap.YAxisConfig().unit(said.unit))
        .cell_values(heatmap.CellValues().unit("short"))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .show_legend()
        .show_y_histogram()
        .mode(common_models.TooltipDisplayMode.SINGLE)
    )
    query = Query(buckets(histogram, *matchers), "{{le}}")
    return _describe(panel, said, [query], PromQueryFormat.HEATMAP)


def rows(
    said: Said,
    query: Query,
    columns: Mapping[str, str],
    colours: dashboard.ThresholdsConfig | None = None,
    width: int = 12,
) -> table.Panel:
    """Return a table with a line a series.

    Parameters
    ----------
    said, query, width
        As for a number.
    columns
        Labels shown, in order, each with its heading; "Value" is the value.
    colours
        Of the value.
    """
    organize = models.DataTransformerConfig(
        "organize",
        options={
            "includeByName": dict.fromkeys(columns, True),
            "indexByName": {column: place for place, column in enumerate(columns)},
            "renameByName": dict(columns),
        },
    )
    panel = table.Panel().span(width).height(8).with_transformation(organize)
    if colours is not None:
        coloured = models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"})
        panel.thresholds(colours).override_by_name(columns["Value"], [coloured])
    return _describe(panel, said, [query], PromQueryFormat.TABLE)


def states(
    said: Said, query: Query, meanings: models.ValueMap, width: int = 12
) -> statetimeline.Panel:
    """Return what was the case when, a line a series."""
    panel = (
        statetimeline.Panel()
        .span(width)
        .height(8)
        .mappings([meanings])
        .show_value(common_models.VisibilityMode.NEVER)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(_legend())
    )
    return _describe(panel, said, [query])


def gauges(
    said: Said, query: Query, colours: dashboard.ThresholdsConfig, most: float, width: int = 12
) -> bargauge.Panel:
    """Return bars by their value now, a bar a series."""
    panel = (
        bargauge.Panel()
        .span(width)
        .height(8)
        .thresholds(colours)
        .min(0)
        .max(most)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _describe(panel, said, [query])


def in_unit(panel: _P, series: str, unit: str, colours: dashboard.ThresholdsConfig) -> _P:
    """Give one series of a panel a unit and colours of its own."""
    own = [
        models.DynamicConfigValue("unit", unit),
        models.DynamicConfigValue("thresholds", colours.build()),
    ]
    return panel.override_by_name(series, own)


def coloured(panel: _P, colours: Mapping[str, str]) -> _P:
    """Give series of a panel colours that say what they mean."""
    for series, colour in colours.items():
        fixed = models.FieldColor(models.FieldColorModeId.FIXED, colour)
        panel.override_by_name(series, [models.DynamicConfigValue("color", fixed)])
    return panel


def bound(panel: _P, series: str) -> _P:
    """Draw the series that match a pattern dashed, as what others are measured by."""
    style = {"fill": "dash", "dash": [8, 8]}
    return panel.override_by_regexp(series, [models.DynamicConfigValue("custom.lineStyle", style)])


def _describe(
    panel: _P,
    said: Said,
    queries: Sequence[Query],
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> _P:
    """Say what a panel shows, ask for it, and link it to the runbook."""
    panel.title(said.title).description(said.description).unit(said.unit).datasource(DATASOURCE)
    for place, query in enumerate(queries):
        panel.with_target(_target(query, chr(ord("A") + place), form))
    if said.alerts:
        panel.links([_runbook(alert) for alert in said.alerts])
    return panel


def _target(query: Query, ref_id: str, form: PromQueryFormat) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref_id).format(form)
    target.datasource(DATASOURCE).legend_format(query.legend).exemplar(query.exemplars)
    return target.instant() if query.instant else target.range()


def _runbook(alert: str) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(f"Runbook: {alert}")
        .type(models.DashboardLinkType.LINK)
        .url(f"{RUNBOOK}#{alert.lower()}")
        .target_blank(True)
    )


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def _tooltip() -> common.VizTooltipOptions:
    every = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    return every.sort(common_models.SortOrder.DESCENDING)
