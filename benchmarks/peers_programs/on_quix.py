"""A Quix Streams application: ``python -m … SERVERS REQUESTS RESULTS GUARANTEE COMMIT_INTERVAL FOLDER``.

It runs in an environment of its own: its pin of confluent-kafka is not ours.
"""

from __future__ import annotations

import sys

from quixstreams import Application

from benchmarks.peers_programs.work import work


def main(
    servers: str, requests: str, results: str, guarantee: str, commit_interval: str, folder: str
) -> None:
    application = Application(
        servers,
        consumer_group=requests,
        auto_offset_reset="earliest",
        processing_guarantee=guarantee,
        commit_interval=float(commit_interval),
        state_dir=folder,
        loglevel="WARNING",
    )
    stream = application.dataframe(application.topic(requests, value_deserializer="json"))
    stream.apply(work).to_topic(application.topic(results, value_serializer="json"))
    application.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
