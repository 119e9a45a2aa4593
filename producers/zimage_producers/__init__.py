"""What publishes requests."""
