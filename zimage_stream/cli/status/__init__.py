"""Where things stand: what is not resolved yet, who works on it, and where one request is."""
