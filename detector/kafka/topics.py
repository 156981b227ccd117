"""Topics: create them, follow one, and let the client check its properties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from detector.errors import FailedError
from detector.kafka.connection import (
    Connection,
    Health,
    KafkaUnusableError,
    refusals,
    require_topic,
    topic_settings,
    wrong_policy,
)
from detector.kafka.consumer import consumer_settings
from detector.kafka.publisher import Publisher


def check_properties(connection: Connection, group_id: str) -> None:
    """Let librdkafka look at the properties, without waiting for a broker.

    Raises
    ------
    RefusedError
        Names a property that it does not know, or whose value it does not take.
    """
    Publisher(connection).close(0.0)
    with refusals():
        Consumer(consumer_settings(connection, group_id)).close()


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic to be created.

    Parameters
    ----------
    name, partitions, settings
        As it is created.
    least
        Fewer partitions than these are wrong where the topic exists already.
    """

    name: str
    partitions: int
    settings: Mapping[str, str]
    least: int = 1


def create_topics(
    connection: Connection, plans: Iterable[TopicPlan], replication: int, timeout_s: float = 15.0
) -> dict[str, str]:
    """Create topics; return by name `created`, `exists`, or what is wrong and how to mend it.

    Of a topic that exists, partitions and `cleanup.policy` are compared with the plan; the latter
    only where this user may read it.

    Raises
    ------
    KafkaUnusableError
        When the brokers refuse us, or we do not trust them.
    """
    health = Health()
    admin = _admin(connection, health)
    planned = {plan.name: plan for plan in plans}
    wanted = [
        NewTopic(
            plan.name,
            num_partitions=plan.partitions,
            replication_factor=replication,
            config=dict(plan.settings),
        )
        for plan in planned.values()
    ]
    results: dict[str, str] = {}
    for name, future in admin.create_topics(wanted, request_timeout=timeout_s).items():
        try:
            future.result(timeout_s + 5)
        except KafkaException as error:
            admin.poll(0)
            if health.fatal is not None:
                raise health.fatal from error
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                results[name] = _compared(connection, planned[name], timeout_s)
            else:
                results[name] = str(error.args[0].str())
        else:
            results[name] = "created"
    return results


def _compared(connection: Connection, plan: TopicPlan, timeout_s: float) -> str:
    """Say `exists`, or in what a topic that exists is not as planned and how to mend it."""
    wrong = []
    partitions = partitions_of(connection, plan.name, timeout_s)
    if partitions < plan.least:
        wrong.append(
            f"has {partitions} partitions, not {plan.least}: kafka-topics.sh --bootstrap-server "
            f"{connection.bootstrap_servers} --alter --topic {plan.name} --partitions {plan.least}"
        )
    settings = topic_settings(connection, plan.name, timeout_s)
    wanted = plan.settings.get("cleanup.policy", "delete")
    if why := wrong_policy(connection, plan.name, settings, wanted):
        wrong.append(why)
    return "exists, but " + "; ".join(wrong) if wrong else "exists"


def partitions_of(connection: Connection, topic: str, timeout_s: float = 15.0) -> int:
    """Return how many partitions a topic has; 0 where there is none.

    Raises
    ------
    KafkaUnusableError, FailedError
        The brokers refuse us, or none answers in time.
    """
    health = Health()
    client = _admin(connection, health)
    try:
        found = client.list_topics(timeout=timeout_s).topics.get(topic)
    except KafkaException as error:
        client.poll(0)
        if health.fatal is not None:
            raise health.fatal from error
        raise FailedError(
            f"no broker answered at {connection.bootstrap_servers} within {timeout_s:.0f} s "
            f"({error.args[0].str()}); check the address"
        ) from error
    return 0 if found is None else len(found.partitions)


def _admin(connection: Connection, health: Health) -> AdminClient:
    settings = {**connection.for_producer(), "error_cb": health.on_error}
    with refusals():
        return AdminClient(cast("dict[str, str | int | float | bool]", settings))


def follow(
    connection: Connection, topic: str, group_id: str, *, from_beginning: bool
) -> Iterator[Message | None]:
    """Read a topic as a plain subscriber; yields None while there is nothing.

    Commits nothing, so that following a topic leaves no trace.
    """
    settings: dict[str, Any] = {
        "auto.offset.reset": "earliest" if from_beginning else "latest",
        **connection.for_reader(),
        "group.id": group_id,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    health = Health()
    with refusals():
        consumer = Consumer({**settings, "error_cb": health.on_error})
    try:
        require_topic(consumer, topic, connection.bootstrap_servers, 15.0, health)
        consumer.subscribe([topic])
        while True:
            message = consumer.poll(0.2)
            if health.fatal is not None:
                raise health.fatal
            if message is not None and (error := message.error()) is not None:
                raise KafkaUnusableError(f"Kafka: {error.str()}")
            yield message
    finally:
        consumer.close()
