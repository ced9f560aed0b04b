"""The skip backbone: a local encoder in place of the layers below a boundary.

A token's state at the boundary is merged from rows of the n-grams around it. A row is a pure
function of its n-gram, so it can be kept in a table, shared by all tenants, and looked up instead
of computed; the layers from the boundary up are the ordinary backbone's very own tensors.

After SkipBERT (Wang et al., ACL 2022), with a small network over three word embeddings in place of
transformer layers.
"""
