"""Scoring a micro-batch, against the same matrix products alone."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from benchmarks.machine import blas
from benchmarks.measure import Row, Spread, ratios, take_turns
from benchmarks.workload import Workload
from detector.artifact import Artifact
from detector.bench import MICRO_BATCH, FeaturePass, score_seconds
from detector.network import fold
from detector.scorer import Scorer
from detector.ticks import TickBatch

TARGET = 0.5
BLOCKS = 16
REPEATS = 5

Float32 = npt.NDArray[np.float32]


class Products:
    """The matrix products of a micro-batch in NumPy float32, into arrays of their own.

    The members' first layers as one product, the others one by one. No normalisation, bias, tanh,
    residual, tail, threshold or allocation: what no scoring of these sizes by the same kind of
    library can undercut.
    """

    def __init__(self, artifact: Artifact, rows: int) -> None:
        arrays = fold(artifact.weights).arrays
        members, _, units = arrays["hidden"].shape
        self._first = np.ascontiguousarray(np.concatenate(list(arrays["hidden"]), axis=1))
        self._hidden = np.empty((rows, members * units), np.float32)
        # As the members' parts of the first product would lie if it cost nothing to part them.
        self._into = np.zeros((members, rows, units), np.float32)
        names = ["latent", "decoder", "output", "encoder2", "decoder2"]
        self._weights = [arrays[name] for name in names]
        self._out = [np.empty((members, rows, w.shape[2]), np.float32) for w in self._weights]

    def run(self, x: Float32) -> None:
        """Multiply `(rows, F)` inputs through both stages of every member."""
        np.matmul(x, self._first, out=self._hidden)
        into, latent = self._into, self._out[0]
        for number, (weights, out) in enumerate(zip(self._weights, self._out, strict=True)):
            for member in range(len(weights)):
                source = latent if number == 3 else into
                np.matmul(source[member], weights[member], out=out[member])
            into = out

    def seconds(self, inputs: list[Float32]) -> float:
        """Time for all inputs, one after the other."""
        began = time.perf_counter()
        for x in inputs:
            self.run(x)
        return time.perf_counter() - began


def measure(work: Workload) -> list[Row]:
    """Score micro-batches of real features, and multiply matrices of the same sizes, in turn."""
    artifact = work.artifact
    scorer = Scorer(artifact, "cpu")
    scorer.warm()
    tape = TickBatch.from_ticks(work.tape)
    blocks = FeaturePass(artifact.features, tape, work.sizes.instruments).blocks(BLOCKS)
    rows = len(blocks[0])
    products = Products(artifact, rows)
    inputs = [np.ascontiguousarray(block.values) for block in blocks]
    for x in inputs:  # standard sizes: what matters is the shape, but denormals would not
        x[:] = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-3)
    calls = REPEATS * len(blocks)

    def score() -> float:
        return sum(score_seconds(scorer, blocks) for _ in range(REPEATS)) / calls

    def multiply() -> float:
        return sum(products.seconds(inputs) for _ in range(REPEATS)) / calls

    found = take_turns(work.sizes.rounds, products=multiply, scoring=score)
    ratio = ratios(found["products"], found["scoring"])
    mine, ceiling = (Spread.of([s * 1e6 for s in found[n]]) for n in ("scoring", "products"))
    cost = artifact.manifest.architecture.sizes.multiply_adds
    return [
        Row(
            "scoring",
            f"scoring, micro-batch {rows:,}, {cost:,} multiply-adds a row, one thread",
            f"{mine.text('.0f')} µs ({rows / mine.median:.2f} M rows/s)",
            f"matrix products alone in NumPy: {ceiling.text('.0f')} µs",
            ratio,
            f"≥ {TARGET}",
            ratio.median >= TARGET,
            {
                "scoring_us": mine,
                "products_us": ceiling,
                "rows": rows,
                "full_size": rows == MICRO_BATCH,
                "multiply_adds": cost,
                "blas": blas(),
            },
        )
    ]
