"""Who may queue, whose turn it is, and how long a batch will take."""
