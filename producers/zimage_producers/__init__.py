"""Producers, which publish requests."""
