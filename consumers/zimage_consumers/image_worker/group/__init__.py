"""Membership in the consumer group: partitions, their checkpoints, and what is committed."""
