"""The process and its supervisor."""
