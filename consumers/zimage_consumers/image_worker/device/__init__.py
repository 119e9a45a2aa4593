"""The device: its thread, what runs together on it, and what it leaks."""
