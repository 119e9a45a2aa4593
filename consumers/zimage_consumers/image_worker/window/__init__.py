"""What the worker holds: partitions, their ledgers, and their jobs without a terminal event yet."""
