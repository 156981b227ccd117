"""Python's cycle collector, kept out of the way of what lives for one micro-batch."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Final

_COLLECT_AFTER: Final = 200_000  # objects made and not freed: a dozen micro-batches of messages


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Keep Python's cycle collector out of the way of the messages while the daemon works.

    Every message is an object the collector knows; by default it looks at all young ones whenever
    700 are new, and now and then at all of TensorFlow's. That took more than half of the intake
    thread's time at one tick a message, measured. Reference counts free the messages; the
    collector still runs, for cycles, only less often and without what was there before.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
