"""The page `docs/features.md`, made from the definitions."""

from __future__ import annotations

from typing import Final

from detector.definitions import SCALES, Feature

_PAGE: Final = """\
# Features

This page is generated: `make docs`.

Each tick gives one row of {count} numbers (float32, always finite), a `ready` flag and quality
bits. All numbers describe the tick's own instrument and are free of its scale: multiply every
price or every size by a constant and they stay as they are. A model can therefore score an
instrument it was never trained on.

## Words

- **w**, `15ev`: the last 15 events of the instrument, this one included, since its windows began.
- **v**, `8ev`, `8tr`: the last 8 events; of trades, the last 8 trades.
- **over h**, `20ms`, `50ms`, `200ms`, `1s`: an exponentially decaying window in event time with
  half-life h. What happened d seconds ago counts 2^(-d/h). E = h / (ln 2 x mean wait) events are
  expected in it.
- **looks back on**: what the feature is computed from, beside the slow scales. `tick`: this tick
  and what the market stands at; `events`: a number of events or trades; `time`: a decaying window
  of a fraction of a second. A score may weigh `time` and the rest as two groups.
- **alone**: made for anomalies that show in one feature only, so a score may judge these by
  themselves too: {lone}.
- **reference price**: the mid. In a market without a book, the trade price; when the first
  two-sided book appears the mid takes over, and the step between the two is no return.
- **slog**: what the definition says, x, is given as sign(x) log(1 + \\|x\\|).
- **log**: the definition already is a logarithm.

The slow scales look back on 2,000 observations: the mean of all at first, an exponential average
later. A feature uses them as they were *before* its event, so an outlier does not shrink itself;
and one observation moves a scale by at most 32 times the scale. While a scale has no observation,
the features in its units are 0.

| scale | of what |
|---|---|
{scales}

## What an event is

| action | counts as |
|---|---|
| `A` with side | an add |
| `C` with side | a cancel on that side, of `size` |
| `T` | a trade of `size`; `side` is the aggressor |
| `N`, `M`; `A`, `C` without side | what the best quotes did, see below |
| `F`, `R`, others | an event, neither add nor cancel nor trade |

What the best quotes did: a better price or a larger size is an add; a worse price is a cancel of
the whole former size, a smaller size at the same price a cancel of the difference.

The order-flow imbalance of an event is e = [bid >= bid'] q - [bid <= bid'] q' - [ask <= ask'] r +
[ask >= ask'] r', with best prices, bid size q and ask size r after it, and primed ones before it;
a side that was or is missing contributes 0.

Where a market lacks something:

- **sizes**: both best sizes zero count as one each, a trade of size zero as one. The queue
  imbalance is then 0, and the order-flow imbalance counts better minus worse quotes.
- **cancels**: with only quotes (`N`) they are inferred as above; otherwise their shares are 0.
- **trades**: the trade features are 0, their expected rate too.
- **a book**: features of the book, its age included, are 0; the trade price is the reference
  price, and its mean absolute change takes the place of the mean spread.
- **one side of the book**: its size is 0; the spread and the reference price stay the last known.
- **a trade record without a book**, in a market that has one: the book stays as it was.
- **prices that are zero or negative**: no logarithm is taken and the log return is 0; changes in
  units of the mean spread are computed as ever.

## Time, gaps, warm-up

- An instrument of ticks is ready from its 64th event on, once its short window is full and 20 s
  of event time have passed since its windows began: a burst of 64 events says little about its
  usual pace. One of vectors is ready from its 64th event on.
- Silence of more than 30 minutes ends the session (halt, night, weekend): every window begins
  anew with the next tick, which is not compared with the one before the gap, so that the
  overnight move is no return; `ready` comes back with the 15th event
  after 20 s. The slow scales stay. A shorter silence only lets the decaying windows fade.
- A late tick (before the instrument's latest) counts as simultaneous with the latest. The second
  tick in a row that is late by more than 30 minutes shows that the clock, not the tick, was
  wrong: the instrument starts over, scales included. So it does 7 days away from its latest tick.
- A time more than 7 days from the partition's clock (its latest plausible time) drops the tick,
  unless the tick just before was dropped for that and lies within 7 days of this one: then the
  clock moves. It moves back at once for a tick within 7 days of where it was.
- Dropped ticks (a repeat of one of the instrument's last 64 records, an implausible or missing
  time, a vector with NaN or infinity) change no window and give zeros, not ready.
- When the cap on instruments is reached, a new one takes the place of the least recently seen,
  which starts over when it comes back.

## Ticks

{ticks}

## Vectors

With a vector of named columns, two features describe the instrument and nine each column (here
`x`). The slow mean and sd are of the column, over 2,000 values, a value counting for at most 32
sd; the long window fades over 256 values. There is no session gap unless configured, and a time
is implausible only 400 days away.

{columns}
"""


def page(features: tuple[Feature, ...], columns: tuple[Feature, ...]) -> str:
    """Text of `docs/features.md`: the scales, then every feature of ticks and of a vector column.

    Parameters
    ----------
    features
        Of the default tick spec.
    columns
        Of a vector spec with one column.
    """
    return _PAGE.format(
        count=len(features),
        lone=", ".join(f"`{f.name}`" for f in features if f.lone),
        scales="\n".join(f"| {name} | {what} |" for name, what in SCALES),
        ticks=_table(features),
        columns=_table(columns),
    )


def _table(features: tuple[Feature, ...]) -> str:
    groups = list(dict.fromkeys(f.group for f in features))
    rows = sorted(features, key=lambda f: groups.index(f.group))
    lines = [
        f"| `{f.name}` | {f.group} | {f.unit} | {f.window} "
        f"| {f.definition.replace('|', chr(92) + '|')} | {f.source} |"
        for f in rows
    ]
    return "\n".join(
        [
            "| feature | group | unit | looks back on | definition | source |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )
