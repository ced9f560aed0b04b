"""Pages of listings. A token says where to go on and carries no authority: every page is authorised
anew, and a token fits only the listing it was made by."""

from __future__ import annotations

import base64
import binascii
import json
import re

from smile.errors import InvalidArgument
from smile.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX

_PLACE = re.compile(r"[A-Za-z0-9/-]{1,200}", re.ASCII)


def page_size(asked: int) -> int:
    """How many to give: 0 means the default, more than the maximum means that."""
    if asked < 0:
        raise InvalidArgument(f"page_size must not be negative, got {asked}")
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def token_for(listing: str, after: str) -> str:
    """The token that goes on after `after` in `listing` (the kind and its parent)."""
    text = json.dumps([listing, after], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place_of(token: str, listing: str) -> str:
    """What `token` goes on after; empty for the first page.

    Raises:
        InvalidArgument: the token was not made by this listing.
    """
    if not token:
        return ""
    try:
        padded = token + "=" * (-len(token) % 4)
        content = json.loads(base64.b64decode(padded, b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        content = None
    if not isinstance(content, list) or len(content) != 2 or content[0] != listing:
        raise _invalid()
    after = content[1]
    if not isinstance(after, str) or not _PLACE.fullmatch(after):
        raise _invalid()
    return after


def _invalid() -> InvalidArgument:
    return InvalidArgument(
        "page_token is not one this listing gave; start again without it",
        reason="PAGE_TOKEN_INVALID",
    )
