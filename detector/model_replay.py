"""Ticks through the models that were in force when a daemon had them: offline, to the last bit.

Where the timeline says that a partition's model changed, the pipeline's model changes, with all
that this does to episodes and thresholds. Knows no file and no Kafka.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from detector.artifact import Artifact
from detector.errors import RefusedError
from detector.model_changes import Timeline
from detector.pipeline import Outcome, Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.symbols import SymbolMap
from detector.ticks import Batch


class ModelReplay:
    """Pipelines that change their model at given offsets, one for each partition.

    Parameters
    ----------
    artifacts
        The models; the first scores what lies before a partition's first change.
    timeline
        Which model scores which offset.
    spec
        Topic name, caps and episode policy.
    symbols
        Names for the events that go before the models' and those of the batches.

    Raises
    ------
    RefusedError
        A model that the timeline names is not among those given, or they differ in their features
        or, where latents are wanted, in the latent's width.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        timeline: Timeline,
        spec: PipelineSpec,
        symbols: SymbolMap,
    ) -> None:
        self._features = artifacts[0].features
        self._first = artifacts[0].model_hash
        self._timeline, self._spec, self._symbols = timeline, spec, symbols
        self._scorers = {each.model_hash: Scorer(each) for each in artifacts}
        self._pipelines: dict[int, Pipeline] = {}
        self._ends: dict[int, int] = {}
        self._check()

    @property
    def latent_width(self) -> int:
        """Columns of the latent."""
        return self._scorers[self._first].latent_width

    def outcomes(self, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Process all batches, then what changed right behind the last tick of each partition."""
        for batch in batches:
            yield from self.process(batch)
        yield from self.finish(self._ends)

    def process(self, batch: Batch) -> Iterator[Outcome]:
        """Process a batch of one partition; an outcome for each piece and for each change."""
        for piece, change in self._timeline.pieces(batch):
            wanted = self._first if change is None else change.model_hash
            pipeline = self._pipelines.get(batch.partition)
            if pipeline is None:
                pipeline = self._pipelines[batch.partition] = Pipeline(
                    self._features, self._scorers[wanted], self._spec, self._symbols
                )
            if change is not None and pipeline.model_hash != wanted:
                yield self._changed(pipeline, batch.partition, wanted, change.next_offset)
            yield pipeline.process(piece)
            self._ends[batch.partition] = int(piece.offsets[-1]) + 1

    def finish(self, next_offsets: Mapping[int, int]) -> Iterator[Outcome]:
        """Make the changes up to and at the partitions' next offsets, though no tick follows."""
        for partition, end in sorted(next_offsets.items()):
            pipeline = self._pipelines.get(partition)
            change = self._timeline.at(partition, end)
            if pipeline is None or change is None or change.model_hash == pipeline.model_hash:
                continue
            yield self._changed(pipeline, partition, change.model_hash, change.next_offset)

    def _changed(self, pipeline: Pipeline, partition: int, wanted: str, offset: int) -> Outcome:
        closed = pipeline.change_model(self._scorers[wanted], {partition: offset})
        return Outcome(closed, (), (), {}, {})

    def _check(self) -> None:
        for change in self._timeline.changes:
            if change.model_hash not in self._scorers:
                raise RefusedError(
                    f"from offset {change.next_offset} of partition {change.partition} on, model "
                    f"{change.version} with hash {change.model_hash[:12]} was in force; give its "
                    "folder, too, with --also-model"
                )
        scorers = self._scorers.values()
        for what, found in (
            ("features", {scorer.fingerprint for scorer in scorers}),
            ("latent widths", {scorer.latent_width for scorer in scorers if self._spec.latent}),
        ):
            if len(found) > 1:
                raise RefusedError(f"the models differ in their {what}; they cannot share a file")
