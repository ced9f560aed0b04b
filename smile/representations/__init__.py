"""Tables of rows that stand for the lower layers: index, snapshot, updates, domains.

Owns which n-gram has a row, and where; knows neither gRPC nor Redis nor torch.
"""
