"""Measurements of what SMILE claims: one module per claim, a common harness, recorded results.

`python -m benchmarks.NAME [--quick] [--record]` measures one claim and prints one JSON object as
its last line; `python -m benchmarks.all --record` measures all of them, and
`python -m benchmarks.report` writes `REPORT.md` and its plots from what was recorded.
"""
