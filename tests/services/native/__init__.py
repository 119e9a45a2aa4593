"""The services as plain processes on loopback."""
