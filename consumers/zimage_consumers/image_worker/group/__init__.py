"""Membership in the consumer group: its partitions, their checkpoints, and what is committed."""
