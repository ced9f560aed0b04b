"""`smile`, the command line over the SDK.

Exit codes: 0 done · 1 internal · 2 usage · 3 invalid argument · 4 not found · 5 no or wrong key, or
not allowed · 6 exists, changed or not in a state for this · 7 quota or overload · 8 unavailable ·
9 deadline · 10 job failed · 130 interrupted.
"""

from __future__ import annotations

from smile.cli.app import build

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process."""
    build()(prog_name="smile")
