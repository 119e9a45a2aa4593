"""The device: the engine's thread, batches and their limits, and the detection of leaks."""
