"""The client side: sending prompts, waiting for results, saving images."""
