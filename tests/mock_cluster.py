"""A mock cluster that fails on demand, for the error paths that a healthy Kafka does not show.

The same librdkafka mock as in `detector/broker.py`, but made through its C interface, which can
refuse requests with any Kafka error, go down, and be slow. `confluent_kafka` does not expose that,
so this module calls the library it ships, by ctypes.

References
----------
librdkafka, `rdkafka_mock.h`; Kafka protocol guide, "API keys".
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import confluent_kafka

_PRODUCER: Final = 0
_EVERY_BROKER: Final = -1


class Request(IntEnum):
    """Kafka requests that can be made to fail, by their API key."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


def _librdkafka() -> ctypes.CDLL:
    """Load the librdkafka that confluent_kafka loaded already (one file, one library)."""
    package = Path(confluent_kafka.__file__).parent
    bundled = package.with_name("confluent_kafka.libs").glob("librdkafka*")
    bundled_on_macos = (package / ".dylibs").glob("librdkafka*")
    library = ctypes.CDLL(str(next(iter([*bundled, *bundled_on_macos]))))
    pointer, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, number]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, number]),
        ("rd_kafka_mock_broker_set_rtt", number, [pointer, number, number]),
        ("rd_kafka_mock_clear_request_errors", None, [pointer, ctypes.c_int16]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class MockCluster:
    """A mock Kafka cluster that fails on demand, from construction to `close`.

    Parameters
    ----------
    brokers
        Number of brokers.

    Attributes
    ----------
    bootstrap : str
        The `bootstrap.servers` of its clients.
    """

    def __init__(self, brokers: int = 1) -> None:
        self._library = _librdkafka()
        reason = ctypes.create_string_buffer(512)
        settings = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(settings, b"log_level", b"3", reason, len(reason))
        self._host = self._library.rd_kafka_new(_PRODUCER, settings, reason, len(reason))
        assert self._host, reason.value.decode()
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._host, brokers)
        assert self._cluster, "librdkafka made no mock cluster"
        self.bootstrap: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic; unlike a request over the protocol, this chooses its partitions."""
        error = self._library.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, 1
        )
        assert error == 0, f"topic {name}: {confluent_kafka.KafkaError(error)}"

    def fail(self, request: Request, *errors: int) -> None:
        """Answer the next `len(errors)` such requests with these `KafkaError` codes, in order.

        `KafkaError._TRANSPORT` disconnects instead of answering.
        """
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, request, len(errors), codes
        )

    def heal(self, request: Request) -> None:
        """Forget the failures of `request` that are still to come."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, request)

    def go_down(self) -> None:
        """Cut every connection and refuse new ones."""
        self._library.rd_kafka_mock_broker_set_down(self._cluster, _EVERY_BROKER)

    def come_back(self) -> None:
        """Accept connections again; topics and messages are still there."""
        self._library.rd_kafka_mock_broker_set_up(self._cluster, _EVERY_BROKER)

    def slow_down(self, latency_ms: int) -> None:
        """Delay every answer by `latency_ms`; 0 ends it."""
        self._library.rd_kafka_mock_broker_set_rtt(self._cluster, _EVERY_BROKER, latency_ms)

    def close(self) -> None:
        """End the cluster; calling it again does nothing."""
        if self._cluster is not None:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._host)
            self._cluster = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
