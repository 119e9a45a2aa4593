"""Real Kafka, MinIO and a schema registry for tests and for working by hand.

Each is a plain process on loopback ("native"), built from packages that are fetched once into a cache
outside the tree. ``python -m tests.services --help`` explains their use from a shell; ``tests/conftest.py``
has the fixtures.
"""

from __future__ import annotations

from tests.services.addresses import KafkaAddress, MinioAddress, RegistryAddress
from tests.services.errors import ServiceError, ServiceMissingError
from tests.services.native.cluster import KafkaCluster
from tests.services.native.kafka import Kafka, SecureKafka
from tests.services.native.minio import Minio
from tests.services.native.registry import Registry

__all__ = [
    "Kafka",
    "KafkaAddress",
    "KafkaCluster",
    "Minio",
    "MinioAddress",
    "Registry",
    "RegistryAddress",
    "SecureKafka",
    "ServiceError",
    "ServiceMissingError",
]
