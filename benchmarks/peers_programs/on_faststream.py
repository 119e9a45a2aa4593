"""A FastStream application on Kafka: ``python -m … SERVERS REQUESTS RESULTS``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker

from benchmarks.peers_programs.work import work


async def main(servers: str, requests: str, results: str) -> None:
    # Without its logger, which writes two lines for every record.
    broker = KafkaBroker(servers, logger=None)

    @broker.subscriber(requests, group_id=requests, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK)
    @broker.publisher(results)
    async def handle(request: dict[str, Any]) -> dict[str, Any]:
        return work(request)

    await FastStream(broker, logger=None).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
