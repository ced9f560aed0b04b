"""One run of training: data and spec in, weights out. No I/O, no queue."""
