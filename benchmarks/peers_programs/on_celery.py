"""A Celery worker's application: ``celery -A benchmarks.peers_programs.on_celery worker``."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.peers_programs.work import work

url = os.environ["PEERS_REDIS"]
app = Celery("peers", broker=url, backend=url)
# As for work that is too expensive to lose or to hoard: acknowledged when it is done, fetched one by one.
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1)
app.task(work, name="work")
