"""The report as one page that needs nothing else: figures as tables, pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from detector.artifact import Artifact
from training.evaluation.alarm_pictures import alarms_by_hour, confusion, rank_curves, samples
from training.evaluation.charts import Picture
from training.evaluation.compare import figure
from training.evaluation.model_pictures import (
    error_histograms,
    latent_plane,
    residual_map,
    training_curves,
)
from training.evaluation.operating import Judged
from training.evaluation.panel import Operated, Scores
from training.evaluation.ranking import curves
from training.evaluation.shipped import Shipped
from training.evaluation.stream import Bool, Stream
from training.evaluation.tables import (
    NOTHING,
    Runs,
    Table,
    against_table,
    budget_table,
    episode_table,
    kinds_of,
    ranking_table,
    recall_table,
)
from training.evaluation.two_stage import TWO_STAGE, TwoStage

SAMPLE: Final = 3_000
"""Most rows of a type that are drawn."""

POINT: Final = "6 an hour, frozen"
ADAPTIVE: Final = "6 an hour, adaptive"


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What the pictures are made from: the first model on the rows to judge.

    Parameters
    ----------
    stream, test
        The ticks, and which of them are judged.
    held_out, calibration
        The stream with the calibration part, and the part.
    scores, held_out_scores
        Of both streams.
    operated
        Every detector at every operating point.
    shipped, as_shipped
        The daemon's pipeline, and what its episodes were.
    model, artifact, summary
        The model, its folder's content and its training summary.
    """

    stream: Stream
    test: Bool
    held_out: Stream
    calibration: Bool
    scores: Scores
    held_out_scores: Scores
    operated: Operated
    shipped: Shipped
    as_shipped: Judged
    model: TwoStage
    artifact: Artifact
    summary: Mapping[str, Any]


def draw(facts: Drawn) -> list[Picture]:
    """Draw every picture there is something to draw for."""
    stream, test, scores = facts.stream, facts.test, facts.scores
    score, kind = scores.by[TWO_STAGE][test], stream.kind[test]
    trial = facts.operated.trial
    at = _sample(np.flatnonzero(test), kind)
    values = np.ascontiguousarray(stream.store.values[at])
    keys = stream.keys[at]
    plotted = [
        samples(trial, facts.as_shipped, facts.shipped.score[test], stream.price[test]),
        alarms_by_hour(trial, facts.as_shipped),
        rank_curves(found) if (found := curves(score, kind)) else None,
        _names(facts),
        residual_map(
            facts.model.residuals(values, keys), stream.kind[at], facts.artifact.features.names
        ),
        latent_plane(facts.model.plane(values, keys), stream.kind[at]),
        error_histograms(
            _three(facts.held_out_scores, facts.calibration),
            _three(scores, test & (stream.kind == 0)),
            _three(scores, test & (stream.kind > 0)),
            facts.artifact.thresholds.pooled,
        ),
        training_curves(facts.summary),
    ]
    return [each for each in plotted if each is not None]


def _three(scores: Scores, chosen: Bool) -> list[Any]:
    return [part[chosen] for part in (scores.stage1, scores.stage2, scores.by[TWO_STAGE])]


def _sample(rows: Any, kind: Any) -> Any:  # noqa: ANN401 - index arrays
    """At most `SAMPLE` rows of each type, spread evenly, in order."""
    chosen = []
    for index in np.unique(kind).tolist():
        mine = rows[kind == index]
        chosen.append(mine[:: max(1, -(-len(mine) // SAMPLE))])
    return np.sort(np.concatenate(chosen))


def _names(facts: Drawn) -> Picture | None:
    """Confusion of the names that episodes ended with; None where the model gives none."""
    last = {event.episode_id: getattr(event, "name", None) for event in facts.shipped.events}
    named = {
        (event.ts_event, event.symbol): last[event.episode_id]
        for event in facts.shipped.events
        if event.phase == "open"
    }
    truth, given = [], []
    for one, episode in zip(
        facts.operated.trial.planted, facts.as_shipped.found.told_by.tolist(), strict=True
    ):
        if episode >= 0:
            at = int(facts.as_shipped.episodes.start[episode]), one.symbol
            if (name := named.get(at)) is not None:
                truth.append(one.kind.value)
                given.append(str(name.type))
    return confusion(truth, given) if truth else None


def write_page(metrics: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Return the page: a summary on top, then tables and pictures."""
    runs = metrics["time_ordered"]["runs"]
    kinds = kinds_of(runs)
    parts = metrics["time_ordered"]["parts"]
    first = next(run for run in runs if run["detector"] == TWO_STAGE)
    episodes = {k: v for k, v in first["episodes"].items() if k != "refused"}
    sections = [
        _section(
            "In brief",
            _tiles(metrics),
            _told(metrics),
            *(_text(f"Warning: {told}.") for told in metrics["warnings"]),
        ),
        _section(
            "Episodes",
            _text(
                "What a desk gets. A hit is an episode that opens within an anomaly or one second "
                "after it, after 60 s without alarm. Thresholds come from calibration scores "
                "alone: frozen where so many false episodes an instrument-hour were expected, or "
                "following their own alarms from there on as in the daemon (planted anomalies "
                "count as alarms there, too)."
            ),
            *(_table(episode_table(f"At {point}", runs, point)) for point in (POINT, ADAPTIVE)),
            *(
                _table(
                    recall_table(f"Recall by type at {point}", runs, point, kinds[1:]), heat=True
                )
                for point in (POINT, ADAPTIVE)
            ),
            _refused(first["episodes"].get("refused", {})),
        ),
        _section(
            "Alarm budget",
            _text(
                "False episodes in clean time against what was asked for. Where at least 100 are "
                "expected the factor is judged (up to 1.5, both ways), else whether the count lies "
                "within the 95 % Poisson interval."
            ),
            _table(budget_table("Two stages, by instrument", episodes)),
        ),
        *(_picture(each) for each in pictures[:2]),
        _section(
            "Rows, time-ordered",
            _text(_rows_told(parts)),
            _rankings(runs, kinds),
        ),
        _published(metrics["published"]),
        _section(
            "Ahead or not",
            _text(
                "Two stages less the other detector, paired over models (seeds): mean ± standard "
                "deviation of the differences. Ahead: the mean is above the deviation; behind: "
                "below minus that; else level. With one model there is no spread and no verdict."
            ),
            _table(against_table("Time-ordered", metrics["time_ordered"]["against"])),
        ),
        *(_picture(each) for each in pictures[2:]),
        _section("How it was made", _text(_how(metrics))),
    ]
    title = f"tapewatch: evaluation of {metrics['models'][0]['version']}"
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>"
        f'<p class="sub">{html.escape(_subtitle(metrics))}</p>{"".join(sections)}'
        "</main></body></html>\n"
    )


def _subtitle(metrics: Mapping[str, Any]) -> str:
    parts = metrics["time_ordered"]["parts"]
    models = len(metrics["models"])
    return (
        f"{', '.join(metrics['instruments'])}: {parts['test_rows']:,} ticks judged, "
        f"{parts['planted']} planted anomalies; {models} model{'s' * (models > 1)}; "
        f"{metrics['created'][:16].replace('T', ' ')} UTC"
    )


def _tiles(metrics: Mapping[str, Any]) -> str:
    runs = [r for r in metrics["time_ordered"]["runs"] if r["detector"] == TWO_STAGE]

    def value(form: str, *path: str, scale: float = 1.0) -> str:
        found = [figure(run, path) for run in runs]
        known = [scale * each for each in found if each is not None]
        return f"{np.mean(known):{form}}" if known else NOTHING

    shipped = metrics["time_ordered"]["as_shipped"]
    told = [one["recall"] for one in shipped if one["recall"] is not None]
    false = [one["false_per_hour"] for one in shipped if one["false_per_hour"] is not None]
    tiles = [
        (value(".3f", "ranking", "causal", "all", "auroc"), "AUROC, causal"),
        (value(".3f", "ranking", "causal", "all", "ap"), "average precision, causal"),
        (
            value(".0f", "episodes", POINT, "mean_recall_over_types", scale=100) + " %",
            "recall, mean over types, at 6 an hour, frozen",
        ),
        (value(".1f", "episodes", POINT, "false_per_hour"), "false episodes an hour there"),
        (f"{100 * np.mean(told):.0f} %" if told else NOTHING, "recall as shipped"),
        (f"{np.mean(false):.1f}" if false else NOTHING, "false episodes an hour as shipped"),
    ]
    cells = "".join(
        f'<div class="tile"><b>{html.escape(number)}</b><span>{html.escape(what)}</span></div>'
        for number, what in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _told(metrics: Mapping[str, Any]) -> str:
    rows = [
        [
            metrics["models"][one["seed"]]["version"],
            f"{one['hit']} of {one['planted']}",
            f"{one['masked']}",
            f"{one['false']}",
            _number(one["false_per_hour"], ".2f"),
            _number(one["clean_time_in_alarm"], ".2f", 100) + " %",
            _number(one["median_delay_ms"], ",.0f"),
            _number(one["median_delay_events"], ",.0f"),
        ]
        for one in metrics["time_ordered"]["as_shipped"]
    ]
    head = [
        "as shipped", "hit", "masked", "false", "false an hour", "clean time in alarm",
        "median delay, ms", "events",
    ]  # fmt: skip
    return _table(("The model with its own thresholds, through the daemon's pipeline", head, rows))


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return NOTHING if value is None else f"{value * scale:{form}}"


def _rows_told(parts: Mapping[str, Any]) -> str:
    ends = parts["ends"]
    same = (
        "the rows the model was fitted on"
        if parts["same_rows_as_the_model"]
        else "not quite the rows the model was fitted on, of which it states "
        f"{parts['model_fit_rows']:,} and {parts['model_calibration_rows']:,}"
    )
    return (
        f"Fitted until {_when(ends['train_end'])} ({parts['fit_rows']:,} rows, "
        f"{parts['early_stopping_rows']:,} of them later for stopping early), calibrated until "
        f"{_when(ends['calibration_end'])} ({parts['calibration_rows']:,} rows): {same}. Judged is "
        f"all that follows after {parts['gap_s']:g} s: {parts['test_rows']:,} rows, "
        f"{parts['anomalous_rows']:,} of them anomalous. Rows just after an anomaly count as "
        "ordinary although windows still hold it."
    )


def _rankings(runs: Runs, kinds: Sequence[str]) -> str:
    titles = {
        "causal": "Causal",
        "delayed": "Delayed (mean over the event and the 14 that follow)",
    }
    measures = {"auroc": "AUROC", "ap": "average precision"}
    return "".join(
        _table(ranking_table(f"{title}: {measure}", runs, which, key, kinds))
        for which, title in titles.items()
        for key, measure in measures.items()
    )


def _published(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    if "refused" in found:
        return _section("Rows, published protocol", _text(f"Left out: {found['refused']}."))
    parts, runs = found["parts"], found["runs"]
    kinds = kinds_of(runs)
    text = (
        f"The model's recipe, fitted anew on {parts['fit_rows']:,} ordinary rows away from the "
        f"anomalies, before and after them in time ({parts['early_stopping_rows']:,} more to stop "
        f"early); judged on the {parts['test_rows']:,} rows within {parts['around_s']} s of an "
        f"anomaly, {parts['anomalous_rows']:,} of them anomalous. Not how a desk works: the fitted "
        "rows are of the same day as the judged ones."
    )
    return _section(
        "Rows, published protocol",
        _text(text),
        _rankings(runs, kinds),
        _table(against_table("Ahead or not, as below", found["against"])),
    )


def _refused(found: Mapping[str, str]) -> str:
    return "".join(
        _text(f"No thresholds for {point}: {why}.") for point, why in sorted(found.items())
    )


def _how(metrics: Mapping[str, Any]) -> str:
    fitting = metrics["fitting"]
    return (
        f"Ticks: {', '.join(metrics['ticks'])}; labels: {metrics['labels']}; training ticks: "
        f"{', '.join(metrics['train_ticks'])}. All detectors see the same z-scores, clipped at 3. "
        f"Baselines are fitted on at most {fitting['most_rows']:,} of the training rows, spread "
        f"evenly; 5-NN looks among {fitting['neighbour_rows']:,} of them. tapewatch "
        f"{metrics['tapewatch']}; every figure is in metrics.json."
    )


def _when(iso: str) -> str:
    return f"{iso[:19].replace('T', ' ')} UTC"


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def _text(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _table(table: Table, *, heat: bool = False) -> str:
    title, head, rows = table
    if not rows:
        return ""
    cells = "".join(f"<th>{html.escape(each)}</th>" for each in head)
    body = "".join(
        f"<tr{_ours(row[0])}><th>{html.escape(row[0])}</th>"
        + "".join(f"<td{_shade(each) if heat else ''}>{_cell(each)}</td>" for each in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{html.escape(title)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """Put the spread of a figure under it."""
    number, _, rest = html.escape(text).partition(" ± ")
    return f"{number}<br><small>± {rest}</small>" if rest else number


def _ours(name: str) -> str:
    return ' class="ours"' if name == TWO_STAGE else ""


def _shade(text: str) -> str:
    """Ground of a share from 0 to 1: the more, the greener."""
    try:
        share = min(max(float(text.partition(" ")[0]), 0.0), 1.0)
    except ValueError:
        return ""
    return f' style="background:rgba(63,166,106,{0.55 * share:.2f})"'


def _picture(each: Picture) -> str:
    light, dark = (base64.b64encode(png).decode() for png in (each.light, each.dark))
    return _section(
        each.title,
        _text(each.caption),
        '<figure><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}"><img alt="{html.escape(each.title)}" '
        f'src="data:image/png;base64,{light}"></picture></figure>',
    )


STYLE: Final = """
:root{--ground:#f6f8fa;--card:#fff;--ink:#1d2730;--soft:#5b6873;--line:#dde3e8;--ours:#eaf2fa}
@media (prefers-color-scheme:dark){:root{--ground:#0d1117;--card:#161b22;--ink:#e6edf3;
--soft:#9aa7b2;--line:#2a323b;--ours:#1b2836}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 10px}
.sub{color:var(--soft);margin:0 0 24px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:20px 22px;margin:0 0 18px}
p{margin:0 0 12px;max-width:80ch;color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;
margin:0 0 18px}
.tile{border:1px solid var(--line);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem;line-height:1.3;display:block}
.scroll{overflow-x:auto;margin:0 0 16px}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:4px 0 6px}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
th:first-child{text-align:left;font-weight:500;position:sticky;left:0;background:var(--card)}
small{color:var(--soft);font-weight:400}
tr.ours th,tr.ours td{background:var(--ours);font-weight:600}
figure{margin:0}
img{display:block;max-width:100%;height:auto;margin:0 auto;border-radius:6px}
@media print{section{break-inside:avoid}}
"""
