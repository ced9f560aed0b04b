"""How a request is answered: as it asks, as was rented, as the vPLM says, else exactly."""

from __future__ import annotations

from typing import Protocol

from services.processor.rentals import Rentals
from services.processor.requests import Target
from smile.errors import FailedPrecondition
from smile.model.specs import ModuleSpec
from smile.resources import Exactness


class Checks(Protocol):
    """Who knows what can be served here."""

    def check(self, spec: ModuleSpec, exactness: Exactness) -> None:
        """Raises `FailedPrecondition` if the module cannot be served here, or not so."""
        ...


class Ways(Protocol):
    """Who has a say in it."""

    @property
    def engine(self) -> Checks: ...
    @property
    def rentals(self) -> Rentals: ...


def exactness_of(ways: Ways, target: Target, asked: Exactness | None) -> Exactness:
    """How a version is to answer.

    What a request or rented terms ask for is given or refused. What a vPLM says of itself is a
    wish: nobody who asks it need know what this processor has.

    Args:
        asked: By the request; None: it does not say.
    """
    asked = ways.rentals.exactness(target.name.vplm, asked)
    if asked is not None:
        return asked
    wish = target.version.exactness
    if wish is None or wish is Exactness.EXACT:
        return Exactness.EXACT
    try:
        ways.engine.check(target.spec, wish)
    except FailedPrecondition:
        return Exactness.EXACT
    return wish


def checked_exactness(ways: Ways, target: Target, asked: Exactness | None) -> Exactness:
    """The same; raises `FailedPrecondition` if it cannot answer so here."""
    exactness = exactness_of(ways, target, asked)
    ways.engine.check(target.spec, exactness)
    return exactness
