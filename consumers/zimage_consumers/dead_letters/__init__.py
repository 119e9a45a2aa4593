"""Dead letters: list, show, export, replay, release."""
