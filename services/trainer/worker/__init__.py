"""The process that claims jobs and brings them to their end."""
