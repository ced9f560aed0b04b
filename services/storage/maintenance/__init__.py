"""Care of the object store: check what it holds, put it in order, remove what nothing points to."""
