"""Materialised answers: rows of n-grams in place of a backbone's lower layers.

Owns which rows are at hand (`standin`), learns from traffic which others are worth having
(`learning`), and tells other processors (`sharing`). It changes how long an answer takes, never
what it says: a row that is not there is computed, to the same bits.
"""
