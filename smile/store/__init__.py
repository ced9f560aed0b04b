"""Where bytes and live state are kept: object stores and Redis, behind small interfaces."""
