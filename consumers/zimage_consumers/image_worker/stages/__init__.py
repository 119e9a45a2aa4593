"""The stages of the message path, from a record that was fetched to its terminal event."""
