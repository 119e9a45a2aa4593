"""The GPU worker: one process, one GPU, one member of the consumer group.

``message_path.py`` states the path of a request from top to bottom. ``schedule``, ``batching`` and
``verdict`` only decide; ``intake``, ``generate``, ``deliver``, ``publish`` and ``session`` have the effects.
"""
