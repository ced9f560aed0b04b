"""Datasets of tenants, from bytes to rows of tokens."""
