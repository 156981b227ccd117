"""What a subscriber of the latent topic starts from: arrays by instrument, every tick once.

Run: python examples/latents.py localhost:9092 [topic]

The daemon delivers at least once: after a crash rows may come again. Rows of an instrument come in
the order of its ticks, so `Newest` drops those that are not beyond the last one seen. Start it with
`[topics] latents = "latents"`; docs/latents.md defines every byte of a message.
"""

from __future__ import annotations

import sys
import uuid

import numpy as np
from confluent_kafka import Consumer, KafkaException

from detector.latents import LatentMessage


class Newest:
    """The place of the last row seen of each instrument."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], tuple[int, int]] = {}

    def rows(self, message: LatentMessage) -> slice:
        """Rows of a message that are beyond what was seen before."""
        who = message.key, message.partition
        last = self._places.get(who, (-1, -1))
        places = message.rows[["offset", "index"]].tolist()
        new = [place > last for place in places]
        first = new.index(True) if True in new else len(new)
        self._places[who] = max(last, *places)
        return slice(first, None)


def main(bootstrap: str, topic: str = "latents") -> None:
    """Read latents until interrupted; here their count and mean are printed, now and then."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"example-{uuid.uuid4().hex[:8]}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([topic])
    newest, total = Newest(), 0
    try:
        while True:
            message = consumer.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                raise KafkaException(error)
            latents = LatentMessage.parse(message.value() or b"")
            rows = latents.latent[newest.rows(latents)]
            if not len(rows):
                continue
            total += len(rows)
            mean = np.array2string(rows.mean(axis=0), precision=2, threshold=4, edgeitems=2)
            symbol = (message.key() or b"").decode()
            print(f"{symbol}: {len(rows)} more, mean {mean}; {total} rows", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:3])
