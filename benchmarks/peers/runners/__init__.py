"""One program per competitor. Each answers the same requests; none but SMILE's imports SMILE.

They run in environments that hold the competitor, torch and nothing of ours, so they use the
standard library and `protocol` alone besides.
"""
