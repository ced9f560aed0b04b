"""What makes rows, and what serves an n-gram that no table has. The standard library alone."""

from __future__ import annotations

import enum


class MissPolicy(enum.StrEnum):
    """What an encoder was distilled for: it decides what it learned from, what a table of its rows
    holds and how rows are looked up; see `smile.representations.fallback`.

    COMPUTE computes the missing row: a table is a cache, and answers do not depend on it. SHORTER
    is SkipBERT's (Wang et al., ACL 2022): the row of the bigram without its right
    neighbour, else that of the unigram. So the encoder learns to leave neighbours out.
    """

    COMPUTE = "compute"
    SHORTER = "shorter"


class RowKind(enum.StrEnum):
    """What makes a row of its three tokens.

    WORDS is a small network over their word embeddings. LAYERS is SkipBERT's: transformer layers
    over the three as a text of their own (Wang et al., ACL 2022), ten times as costly.
    """

    WORDS = "words"
    LAYERS = "layers"
