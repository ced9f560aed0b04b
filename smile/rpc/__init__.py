"""How SMILE speaks gRPC: one way to build servers and channels, one table of errors."""
