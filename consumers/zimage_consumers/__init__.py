"""What consumes: the image worker, and readers of results and dead letters."""
