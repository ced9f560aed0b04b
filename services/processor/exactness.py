"""How a request is answered: as it asks, as was rented, as the vPLM says, else exactly."""

from __future__ import annotations

from typing import Protocol

from services.processor.requests import Target
from smile.errors import FailedPrecondition
from smile.model.specs import ModuleSpec
from smile.resources import Exactness


class Checks(Protocol):
    """Who knows what can be served here."""

    def check(self, spec: ModuleSpec, exactness: Exactness) -> None:
        """Raises `FailedPrecondition` if the module cannot be served here, or not so."""
        ...


def chosen(engine: Checks, target: Target, asked: Exactness | None) -> Exactness:
    """How a version is to answer.

    What a request or rented terms ask for is given or refused. What a vPLM says of itself is a
    wish: nobody who asks it need know what this processor has.

    Args:
        asked: By the request or by rented terms; None: neither says.
    """
    if asked is not None:
        return asked
    wish = target.version.exactness
    if wish is None or wish is Exactness.EXACT:
        return Exactness.EXACT
    try:
        engine.check(target.spec, wish)
    except FailedPrecondition:
        return Exactness.EXACT
    return wish
