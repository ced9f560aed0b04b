"""Making a domain: its local encoder learns further, and its delta table is built.

A domain's encoder begins as its parent's and learns other rows alone: merging stays as it is, so
rows of domain and parent fit one another, and one merge and one set of upper layers serve them all.
"""
