"""The GPU worker: one process, one GPU, one member of the consumer group.

``worker.py`` states the message path from top to bottom. ``checkpoint``, ``schedule``, ``batching``
and ``verdict`` decide and touch nothing; ``intake``, ``generate``, ``deliver``, ``publish`` and
``session`` have the effects.
"""
