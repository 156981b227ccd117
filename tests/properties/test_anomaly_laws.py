"""Laws of planting in recorded streams: batches change nothing, seeds decide everything."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.feeds import Feed
from detector.placing import sort_by_time
from detector.synthetic import DEMO_START_NS, Instrument, Market, gather, generate
from detector.ticks import TickBatch
from tests.feed_streams import as_feed
from training.anomalies import inject
from training.halves import Half
from training.planning import Policy, plan_stream, survey

SECONDS = 900
MARKET = Market(
    tuple(
        Instrument(f"I{n}", price=20.0 + n, rate_hz=8.0, spread_ticks=3.0, trade_share=0.2)
        for n in range(4)
    ),
    seed=13,
)
_WHOLE = gather(generate(MARKET, DEMO_START_NS, SECONDS))
CLEAN = TickBatch.from_ticks(
    sort_by_time(
        np.concatenate(
            [
                as_feed(_WHOLE.ticks[_WHOLE.keys == key], feed)
                for key, feed in zip(MARKET.symbols, Feed, strict=True)
            ]
        )
    ),
    symbols=MARKET.symbols,
)
SURVEYS = survey([CLEAN])
FEEDS = {key: one.feed for key, one in SURVEYS.items()}

seeds = st.integers(0, 2**31 - 1)


def planted_bytes(edges: list[int], seed: int) -> tuple[bytes, list[int], list[int]]:
    """The planted stream, the anomaly and the kind of each tick, fed in these pieces."""
    planted = plan_stream(SURVEYS, Policy(40.0, separation_s=10.0, seed=seed))
    parts = list(inject((CLEAN[a:b] for a, b in itertools.pairwise(edges)), planted, FEEDS))
    return (
        b"".join(part.batch.ticks.tobytes() for part in parts),
        np.concatenate([part.labels.anomaly for part in parts]).tolist(),
        np.concatenate([part.labels.kind for part in parts]).tolist(),
    )


@settings(max_examples=15, deadline=None)
@given(
    seed=seeds,
    step=st.integers(7, 700),
    cuts=st.lists(st.integers(0, len(CLEAN)), max_size=10),
)
def test_batches_change_nothing(seed: int, step: int, cuts: list[int]) -> None:
    """Instruments of all four feeds, cut within anomalies: the same ticks and the same labels."""
    whole = planted_bytes([0, len(CLEAN)], seed)
    edges = sorted([*range(0, len(CLEAN), step), *cuts, len(CLEAN)])
    assert planted_bytes(edges, seed) == whole
    assert max(whole[1]) > 10


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    half=st.sampled_from(Half),
    per_hour=st.floats(1.0, 40.0),
    separation_s=st.floats(0.0, 60.0),
)
def test_plans_keep_their_separation(
    seed: int, half: Half, per_hour: float, separation_s: float
) -> None:
    """No anomaly starts within the separation of another one's end, or of the stream's ends."""
    policy = Policy(per_hour, half=half, separation_s=separation_s, seed=seed)
    planted = plan_stream(SURVEYS, policy)
    gap = round(separation_s * 1e9)
    for key, one in SURVEYS.items():
        free_from = int(one.ts[512])
        for each in (each for each in planted if each.key == key):
            assert each.start_ns >= free_from + gap
            assert each.end_ns + gap <= one.ts[-1]
            free_from = each.end_ns
    assert planted == plan_stream(SURVEYS, policy)
