"""The client side: prompts sent, results awaited, pictures saved."""
