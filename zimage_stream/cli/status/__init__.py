"""``zimage status``: the unresolved requests, the workers that own them, and the state of one request."""
