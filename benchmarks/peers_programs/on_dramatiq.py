"""A Dramatiq worker's actors: ``dramatiq benchmarks.peers_programs.on_dramatiq``."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers_programs.work import work

url = os.environ["PEERS_REDIS"]
broker = RedisBroker(url=url)  # type: ignore[no-untyped-call]
broker.add_middleware(Results(backend=RedisBackend(url=url)))  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)
dramatiq.actor(actor_name="work", store_results=True)(work)
