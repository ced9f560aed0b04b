"""Python imports this before anything else: children of the tests are guarded from the start."""

import no_unpickling  # type: ignore[import-not-found]

no_unpickling.install()
