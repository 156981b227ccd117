"""Kafka at the edge: fetch messages by partition, publish with acknowledgements, create topics.

The only package, beside `broker`, that imports `confluent_kafka`. It knows no tick and no event;
what it hands over are bytes, offsets and acknowledgements.
"""

from detector.kafka.connection import Connection, Headers, Health, KafkaUnusableError
from detector.kafka.consumer import (
    Assignment,
    PartitionMessages,
    Place,
    TickConsumer,
    consumer_settings,
)
from detector.kafka.publisher import Acknowledge, Publisher
from detector.kafka.state_topic import read_state
from detector.kafka.topics import TopicPlan, check_properties, create_topics, follow, partitions_of
from detector.kafka.transactions import Step, TransactionalPublisher, TransactionLostError

__all__ = [
    "Acknowledge",
    "Assignment",
    "Connection",
    "Headers",
    "Health",
    "KafkaUnusableError",
    "PartitionMessages",
    "Place",
    "Publisher",
    "Step",
    "TickConsumer",
    "TopicPlan",
    "TransactionLostError",
    "TransactionalPublisher",
    "check_properties",
    "consumer_settings",
    "create_topics",
    "follow",
    "partitions_of",
    "read_state",
]
