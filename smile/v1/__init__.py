"""Generated from `protos/smile/v1` by `make protos`. Never edited by hand."""
