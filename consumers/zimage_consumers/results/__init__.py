"""Readers of the results topic."""
