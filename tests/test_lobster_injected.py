"""The measuring-only reader of the injected LOBSTER set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.lobster_injected import read_injected
from detector.readers import read_ticks
from detector.ticks import UNDEFINED_PRICE


def table(**columns: list[float]) -> pa.Table:
    """Rows of the set; columns that are not given are zero."""
    names = ("trade_sign", "trade_sz", "cxl_bid_sz", "cxl_ask_sz", "label", "cluster")
    n = len(columns["ts_ms"])
    rest = {name: [0.0] * n for name in names if name not in columns}
    return pa.table({"symbol": ["ABC"] * n} | columns | rest)


def test_events_are_inferred(tmp_path: Path) -> None:
    """Adds by what grew, cancels and trades as given, a trade at the price it met."""
    path = tmp_path / "abc.parquet"
    rows = table(
        ts_ms=[34_200_000.0, 34_200_001.241, 34_200_002.0, 34_200_003.0, 34_200_004.0],
        bid_px=[10.0, 10.01, 10.01, 10.0, 10.0],
        bid_sz=[5, 7, 7, 5, 5],
        ask_px=[10.05, 10.05, 10.05, 10.05, 10.06],
        ask_sz=[4, 4, 6, 6, 9],
        trade_sign=[0, 0, 0, 1, 0],
        trade_sz=[0, 0, 0, 7, 0],
        cxl_ask_sz=[0, 0, 0, 0, 6],
        label=[0, 0, 0, 3, 3],
        cluster=[0, 0, 0, 1, 1],
    )
    pq.write_table(rows, path)
    injected = read_injected(path)
    ticks = injected.batch.ticks
    assert ticks["action"].tobytes().decode() == "NAATC"
    assert ticks["side"].tobytes().decode() == "NBAAA"
    assert ticks["size"].tolist() == [0, 7, 2, 7, 6]
    assert ticks["price"].tolist() == [*[UNDEFINED_PRICE] * 3, 10_010_000_000, UNDEFINED_PRICE]
    assert ticks["bid_px"][1] == 10_010_000_000
    assert (np.diff(ticks["ts_event"].astype(np.int64))[0]) == 1_241_000
    assert injected.labels.tolist() == [0, 0, 0, 3, 3]
    assert injected.clusters.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.data
@pytest.mark.parametrize(
    ("stock", "rows", "trades"), [("AAPL", 115_957, 24_008), ("AMZN", 64_114, 9_324)]
)
def test_the_set(shared_data: Path, stock: str, rows: int, trades: int) -> None:
    """All rows are there, labels with 150 clusters each, sides as in the LOBSTER file."""
    injected = read_injected(shared_data / "lobster_injected" / f"{stock}.parquet")
    ticks = injected.batch.ticks
    assert len(ticks) == len(injected.labels) == rows
    assert int((ticks["action"] == ord("T")).sum()) == trades
    assert len(np.unique(injected.clusters[injected.clusters > 0])) == 150
    assert ((injected.labels > 0) == (injected.clusters > 0)).all()
    assert (ticks["action"] != ord("N")).mean() > 0.99
    name = f"LOBSTER_SampleFile_{stock}_2012-06-21_1.zip"
    source = np.concatenate([b.ticks for b in read_ticks(shared_data / "lobster" / name)])
    # An inserted cluster shifts what follows in time: compare up to the first one. Times to 1 us,
    # size and side identify most trades of the source.
    known = {
        (int(t) // 1000, int(size), int(side))
        for t, size, side in source[source["action"] == ord("T")][
            ["ts_event", "size", "side"]
        ].tolist()
    }
    start = ticks[: int(np.argmax(injected.labels > 0))]
    trades_before = start[start["action"] == ord("T")]
    assert len(trades_before) >= 5
    found = [
        any((int(t) // 1000 + d, int(size), int(side)) in known for d in (-1, 0, 1))
        for t, size, side in trades_before[["ts_event", "size", "side"]].tolist()
    ]
    assert np.mean(found) > 0.95
