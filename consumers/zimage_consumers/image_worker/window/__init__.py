"""What the worker holds: partitions, their ledgers, and the jobs of theirs without a terminal event yet."""
