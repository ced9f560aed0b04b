"""Jobs that wait: the queue on Redis, and pure rules of whose turn it is and when."""
