"""From the queue to the device: threads, what they share, and what they did when."""
