"""How often a crashed service comes back. Pure: times are given."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class RestartBudget:
    """At most `restarts_max` restarts in any `window_s` seconds, each after a longer pause."""

    restarts_max: int = 5
    window_s: float = 600.0
    pause_s_first: float = 0.5
    pause_s_max: float = 30.0
    _times: deque[float] = field(default_factory=deque)

    def take(self, now_s: float) -> float | None:
        """Seconds to wait before the next restart, or None when the budget is spent."""
        while self._times and self._times[0] <= now_s - self.window_s:
            self._times.popleft()
        if len(self._times) >= self.restarts_max:
            return None
        pause_s = min(self.pause_s_first * 2 ** len(self._times), self.pause_s_max)
        self._times.append(now_s)
        return float(pause_s)
