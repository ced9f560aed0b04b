"""Distillation of a local encoder from the ordinary backbone, on one machine and without services.

The teacher is the ordinary backbone; its embeddings and upper layers are the student's, too, and
stay as they are. What is learned is the local encoder alone.
"""
