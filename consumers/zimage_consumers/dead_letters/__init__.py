"""Dead letters: list, show, replay, export."""
