"""The change feed: what storage's replicas tell one another, and those who watch."""
