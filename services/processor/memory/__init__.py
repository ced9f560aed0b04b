"""The memory hierarchy: object store, host arena, device slots, and who leaves when."""
