"""What the demo simulates: a seeded market, a clean period to train on, a live one with anomalies.

The frozen definition of one demo. Equal scenarios lead to equal ticks, an equal model and, on one
machine, to equal events. Knows no Kafka, no process and no clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from detector.planting import Planted, plan
from detector.synthetic import (
    DEMO_KINDS,
    DEMO_LIVE_S,
    DEMO_PLANTS,
    DEMO_SEPARATION_S,
    DEMO_START_NS,
    Market,
    demo_market,
    generate,
)
from detector.ticks import NS_PER_S, TickBatch
from training.datasets import Split
from training.train import Options

LEAST_LIVE_S: Final = 150
"""Room for the longest anomaly with `DEMO_SEPARATION_S` before and after it."""

LESSONS_PER_KIND: Final = 20
"""Anomalies of each kind, planted in the training minutes, that the head learns names from; fewer
where these are fewer than `TRAIN_S`."""

TRAIN_S: Final = 900

PLANT_EVERY_S: Final = DEMO_LIVE_S / DEMO_PLANTS


@dataclass(frozen=True)
class Scenario:
    """One demo.

    Parameters
    ----------
    seed
        Of the market, the anomalies and the model.
    live_s
        Market time of the live part in whole seconds, at least `LEAST_LIVE_S`.
    speed
        How many times faster than market time the live part is played.
    train_s
        Market time before it, in whole seconds, to train and calibrate on.
    quantile
        Share of ordinary ticks that must stay below the threshold. At the market's 25 ticks a
        second and instrument, .9999 lets one ordinary tick through in about 7 minutes.
    epochs
        Passes over the training rows, at most.
    """

    seed: int = 7
    live_s: int = int(DEMO_LIVE_S)
    speed: float = 12.0
    train_s: int = TRAIN_S
    quantile: float = 0.9999
    epochs: int = 6

    @cached_property
    def market(self) -> Market:
        """Twenty instruments."""
        return demo_market(self.seed)

    @property
    def live_ns(self) -> int:
        """Event time at which the live part begins."""
        return DEMO_START_NS + self.train_s * NS_PER_S

    @cached_property
    def plants(self) -> tuple[Planted, ...]:
        """The anomalies: as many of each kind as they go, none in the first 45 live seconds."""
        return plan(
            self.market.symbols,
            round(self.live_s / PLANT_EVERY_S),
            self.live_ns,
            self.live_ns + self.live_s * NS_PER_S,
            min_separation_s=DEMO_SEPARATION_S,
            kinds=DEMO_KINDS,
            seed=self.seed,
        )

    @cached_property
    def lessons(self) -> tuple[Planted, ...]:
        """Other anomalies of the same kinds, in the minutes before the live part."""
        share = max(self.train_s - LEAST_LIVE_S, 0) / (TRAIN_S - LEAST_LIVE_S)
        return plan(
            self.market.symbols,
            round(share * LESSONS_PER_KIND * len(DEMO_KINDS)),
            DEMO_START_NS,
            self.live_ns,
            min_separation_s=DEMO_SEPARATION_S,
            kinds=DEMO_KINDS,
            seed=self.seed + 1,
        )

    def options(self) -> Options:
        """How the model is trained: as `tapewatch train` would, with most rows for thresholds."""
        return Options(
            split=Split(train=0.6, calibration=0.35, gap_s=10.0),
            quantile=self.quantile,
            seed=self.seed,
            epochs=self.epochs,
            version=f"demo-seed{self.seed}",
        )

    def training_ticks(self) -> Iterator[TickBatch]:
        """Yield the clean ticks before the live part."""
        return generate(self.market, DEMO_START_NS, self.train_s)

    def lesson_ticks(self) -> Iterator[TickBatch]:
        """Yield the ticks before the live part once more, with anomalies."""
        return generate(self.market, DEMO_START_NS, self.train_s, self.lessons)

    def live_ticks(self) -> Iterator[TickBatch]:
        """Yield the ticks of the live part, anomalies included: the same market going on."""
        whole = generate(self.market, DEMO_START_NS, self.train_s + self.live_s, self.plants)
        return itertools.dropwhile(lambda batch: int(batch.ts_event[0]) < self.live_ns, whole)
