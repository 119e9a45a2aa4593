"""Readers of the results topic: follow, gather, save."""
