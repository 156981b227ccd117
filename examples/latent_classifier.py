"""The latent as features: a small classifier names the kind of an anomaly from it.

Run: python examples/latent_classifier.py
 or: python examples/latent_classifier.py scores.parquet labels.parquet

Without files it makes a synthetic market with planted anomalies, fits a `TwoStageDetector` on an
ordinary stretch before them and takes the latent of the rest. With files it reads what
`tapewatch score --latent` wrote of the ticks that `tapewatch inject` planted and labelled. Either
way the first half of the event time trains the classifier and the second half tests it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from detector.errors import RefusedError
from detector.features import DEFAULT
from detector.planting import plan
from detector.scripts import AnomalyKind
from detector.synthetic import Instrument, Market, gather, generate
from training import TwoStageDetector
from training.labels import read_labels, tick_labels

START_NS = 1_750_000_000 * 10**9
ORDINARY_S, PLANTED_S, PLANTS = 600, 1_200, 60
KINDS = (
    AnomalyKind.QUOTE_STUFFING,
    AnomalyKind.LAYERING,
    AnomalyKind.PUMP_AND_DUMP,
    AnomalyKind.MOMENTUM_IGNITION,
)

Latent = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def made(seed: int = 0) -> tuple[Latent, Int64, Int64]:
    """Latent, event time and kind (0: ordinary) of the ticks of a market made here."""
    market = Market(
        tuple(Instrument(f"S{i}", price=20.0 + 30 * i, rate_hz=15.0) for i in range(3)), seed=seed
    )
    planted_ns = START_NS + ORDINARY_S * 10**9
    end_ns = planted_ns + PLANTED_S * 10**9
    plants = plan(
        market.symbols, PLANTS, planted_ns, end_ns, min_separation_s=20, kinds=KINDS, seed=seed
    )
    ticks = gather(generate(market, START_NS, ORDINARY_S + PLANTED_S, plants))
    block = DEFAULT.bank().update(ticks)
    ordinary = block.ready & (block.ts < planted_ns)
    later = block.ready & (block.ts >= planted_ns)
    detector = TwoStageDetector(random_state=seed).fit(block.values[ordinary])
    latent = detector.transform(block.values[later]).astype(np.float32)
    labels = tick_labels(block.keys[later], block.ts[later], plants)
    return latent, block.ts[later], labels.kind.astype(np.int64)


def read(scores: Path, labels: Path) -> tuple[Latent, Int64, Int64]:
    """Return the same from a score file with latents and a file of labels."""
    if not scores.is_file():
        sys.exit(f"{scores}: no such file; write it with `tapewatch score --latent`")
    try:
        planted = [label.planted for label in read_labels(labels)]
        table = pq.read_table(scores)
    except (RefusedError, pa.ArrowException) as error:
        sys.exit(f"{error}")
    names = [name for name in table.schema.names if name.startswith("latent_")]
    if not names:
        sys.exit(f"{scores}: no latent_ columns; write it with `tapewatch score --latent`")
    table = table.filter(table["ready"])
    latent = np.column_stack([table[name].to_numpy() for name in names])
    ts = table["ts_event"].to_numpy().astype(np.int64)
    publisher, instrument = (table[f"{name}_id"].to_numpy() for name in ("publisher", "instrument"))
    keys = (publisher.astype(np.int64) << 32) | instrument.astype(np.int64)
    return latent, ts, tick_labels(keys, ts, planted).kind.astype(np.int64)


def main(*files: str) -> None:
    """Train on the first half of the time, test on the second, and say what came of it."""
    if len(files) not in (0, 2):
        sys.exit("give a score file and its labels, or nothing")
    latent, ts, kind = read(*map(Path, files)) if files else made()
    planted = kind > 0
    if not planted.any():
        sys.exit("no scored tick lies in a labelled anomaly: these are labels of other ticks")
    first = ts < np.median(ts[planted])
    if len(np.unique(kind[first & planted])) < 2 or not (~first & planted).any():
        sys.exit(
            "the first half of the anomalies must hold two kinds, the second half at least one"
        )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1_000, class_weight="balanced")
    )

    model.fit(latent[first & planted], kind[first & planted])
    test = ~first & planted & np.isin(kind, kind[first])
    named = balanced_accuracy_score(kind[test], model.predict(latent[test]))
    chance = 1 / len(np.unique(kind[first & planted]))

    model.fit(latent[first], planted[first])
    found = average_precision_score(planted[~first], model.predict_proba(latent[~first])[:, 1])
    print(f"{len(latent):,} ticks, {latent.shape[1]} latents, {planted.sum():,} in anomalies")
    print(
        f"names the kind of a planted tick: {named:.2f} balanced accuracy, {chance:.2f} by chance"
    )
    share = planted[~first].mean()
    print(f"tells planted ticks from others: {found:.2f} average precision, {share:.2f} by chance")


if __name__ == "__main__":
    main(*sys.argv[1:])
