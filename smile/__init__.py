"""SMILE."""
