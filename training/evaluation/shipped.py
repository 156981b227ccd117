"""The model as it is shipped: its ticks through the daemon's own pipeline, its own thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.artifact import Artifact
from detector.events import AnomalyEvent
from detector.pipeline import Pipeline
from detector.scorer import Scorer
from detector.ticks import Batch, instrument_key
from training.evaluation.episodes import Episodes

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Shipped:
    """What the daemon would have said.

    Parameters
    ----------
    at
        `(n,)` int64 numbers of the ready ticks among all ticks.
    score, threshold
        `(n,)` of the ready ticks, in order, as applied.
    events
        All that it would have published.
    """

    at: Int64
    score: Float64
    threshold: Float64
    events: tuple[AnomalyEvent, ...]

    def episodes(self, ts: Int64, test: npt.NDArray[np.bool_]) -> Episodes:
        """Episodes that a tick to be judged opened; rows count those ticks alone.

        Parameters
        ----------
        ts
            `(n,)` event times of the ready ticks.
        test
            `(n,)` bool: the ticks to judge.
        """
        closed = {e.episode_id: e.summary for e in self.events if e.summary is not None}
        place = np.cumsum(test) - 1
        found = []
        for event in self.events:
            row = int(np.searchsorted(self.at, event.source.offset))
            if event.phase == "open" and test[row]:
                summary = closed.get(event.episode_id)
                end = int(ts[-1]) if summary is None else summary.ts_end
                key = instrument_key(event.publisher_id, event.instrument_id)
                found.append((key, event.ts_event, end, int(place[row])))
        return Episodes(*np.array(found, np.int64).reshape(-1, 4).T)


def run_pipeline(
    artifact: Artifact, batches: Iterable[Batch], tell: Callable[[int], None] | None = None
) -> Shipped:
    """Drive the pipeline that the daemon drives."""
    pipeline = Pipeline(artifact.features, Scorer(artifact))
    offsets, scores, thresholds = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0)]
    events: list[AnomalyEvent] = []
    for batch in batches:
        outcome = pipeline.process(batch)
        ready = outcome.blocks[0].ready
        offsets.append(batch.offsets[ready])
        scores.append(outcome.scores[0].score[ready])
        thresholds.append(outcome.scores[0].threshold[ready])
        events.extend(outcome.events)
        if tell is not None:
            tell(len(batch))
    return Shipped(
        np.concatenate(offsets), np.concatenate(scores), np.concatenate(thresholds), tuple(events)
    )
