"""A board: rows of panels, and what all boards share: variables, links, annotations.

Dashboards are read from files and cannot be changed in Grafana, so that what an operator sees is
what is in the repository.
"""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from .parts import DATASOURCE, RUNBOOK, Panel
from .queries import of

TAG: Final = "tapewatch"
_ALL: Final = models.VariableOption(selected=True, text="All", value="$__all")


class Board:
    """A dashboard under construction.

    Parameters
    ----------
    uid
        Its fixed identity; links between boards keep working when it is renamed.
    title, description
        For people.
    """

    def __init__(self, uid: str, title: str, description: str) -> None:
        self._panels = 0
        self._dashboard = (
            build.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([TAG])
            .readonly()
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .time("now-1h", "now")
            .refresh("30s")
            .variables(_variables())
            .annotations(_annotations())
            .links(_links())
        )

    def row(self, title: str, *panels: Panel) -> Board:
        """Add a row of panels, left to right, 24 columns a line."""
        self._dashboard.with_row(build.Row(title).id(self._next()))
        for panel in panels:
            self._dashboard.with_panel(panel.id(self._next()))
        return self

    def to_json(self) -> str:
        """Return the dashboard as Grafana reads it, the same text every time."""
        return JSONEncoder(sort_keys=True, indent=2).encode(self._dashboard.build()) + "\n"

    def _next(self) -> int:
        self._panels += 1
        return self._panels


class _Annotation(models.AnnotationQuery, Builder[models.AnnotationQuery]):
    """Marks on the time axis where a query has a value, with fields the library does not know.

    With `times` the values are the times, in milliseconds; else it is marked where they are not 0.
    """

    def __init__(self, name: str, colour: str, expr: str, *, times: bool) -> None:
        super().__init__(name=name, datasource=DATASOURCE, icon_color=colour, expr=expr)
        self._times = times

    def build(self) -> models.AnnotationQuery:
        """Return itself: it is complete from the start."""
        return self

    def to_json(self) -> dict[str, object]:
        """Return it as Grafana's Prometheus data source reads it."""
        more = {"titleFormat": self.name, "textFormat": "{{instance}}", "step": "60s"}
        return super().to_json() | more | ({"useValueForTime": "on"} if self._times else {})


def _annotations() -> list[Builder[models.AnnotationQuery]]:
    # A model was swapped in only where the process has swapped; else it is the process's first.
    started = of("process_start_time_seconds") + " * 1000 > $__from < $__to"
    loaded = of("tapewatch_model_loaded_timestamp_seconds") + " * 1000 > $__from < $__to"
    swapped = of("tapewatch_model_swaps_total", 'outcome="done"') + " > 0"
    refused = of("tapewatch_model_swaps_total", 'outcome="refused"')
    ours = f"and on (job, instance) {of('tapewatch_build_info')}"
    return [
        _Annotation("Restart", "orange", f"{started} {ours}", times=True),
        _Annotation(
            "Model swapped", "blue", f"{loaded} and on (job, instance) {swapped}", times=True
        ),
        _Annotation("Model refused", "red", f"increase({refused}[2m]) > 0", times=False),
    ]


def _variables() -> list[Builder[models.VariableModel]]:
    return [
        build.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _selection("job", "label_values(tapewatch_ready, job)"),
        _selection("instance", 'label_values(tapewatch_ready{job=~"$job"}, instance)'),
    ]


def _selection(name: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(name.capitalize())
        .query(query)
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(_ALL)
    )


def _links() -> list[Builder[models.DashboardLink]]:
    boards = build.DashboardLink("tapewatch").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    runbook = build.DashboardLink("Runbook").type(models.DashboardLinkType.LINK).url(RUNBOOK)
    return [boards.include_vars(True).keep_time(True), runbook.icon("doc").target_blank(True)]
