"""Settings shared by every test: one torch thread, no network for model hubs, no unpickling."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.guard import no_unpickling

no_unpickling.install()
