"""An S3 bucket as such: made, and told to keep old versions. obstore has no calls for that.

Requests are signed as AWS documents it ("Signature Version 4 signing process", header form).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from smile.errors import FailedPrecondition, Unavailable
from smile.store.objects import S3Options

REQUEST_S_MAX = 10.0
RETRY_AFTER_S = 1.0
ANSWER_BYTES_MAX = 65_536
_ENABLED = re.compile(rb"<Status>\s*Enabled\s*</Status>")
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_ENABLE = (
    f'<VersioningConfiguration xmlns="{_NAMESPACE}"><Status>Enabled</Status>'
    "</VersioningConfiguration>"
).encode()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the service said: an HTTP status, and the beginning of its text."""

    status: int
    body: bytes


class S3Bucket:
    """One bucket of an S3 service. Every method may raise `Unavailable`."""

    def __init__(
        self, name: str, options: S3Options, clock: Callable[[], datetime] | None = None
    ) -> None:
        self._name = name
        self._options = options
        self._clock = clock or (lambda: datetime.now(UTC))

    @property
    def may_be_made(self) -> bool:
        """Whether it is made where it is missing."""
        return self._options.create_bucket and bool(self._options.access_key)

    @property
    def keeps_versions(self) -> bool:
        """Whether it was asked to."""
        return self._options.keep_versions

    async def create(self) -> None:
        """Make it; one that is there is fine. Raises `FailedPrecondition` where that is refused."""
        region = self._options.region
        body = b""
        if region != "us-east-1":  # the one that must not be named
            body = (
                f'<CreateBucketConfiguration xmlns="{_NAMESPACE}"><LocationConstraint>{region}'
                "</LocationConstraint></CreateBucketConfiguration>"
            ).encode()
        answer = await self._ask("PUT", "", body)
        if answer.status not in (200, 409):
            raise self._refused(answer, "make it")

    async def versioned(self) -> bool:
        """Whether it keeps what is overwritten or deleted. `FailedPrecondition` if that is not
        told.
        """
        answer = await self._ask("GET", "versioning=", b"")
        if answer.status != 200:
            raise self._refused(answer, "tell whether it keeps versions")
        return _ENABLED.search(answer.body) is not None

    async def keep_versions(self) -> None:
        """Have it keep them from now on. Raises `FailedPrecondition` where that is refused."""
        answer = await self._ask("PUT", "versioning=", _ENABLE)
        if answer.status != 200:
            raise self._refused(answer, "keep versions")

    async def _ask(self, method: str, query: str, body: bytes) -> _Answer:
        return await asyncio.to_thread(self._send, method, query, body)

    def _send(self, method: str, query: str, body: bytes) -> _Answer:
        url = f"{self._options.endpoint}/{self._name}{'?' if query else ''}{query}"
        headers = {**self._headers(method, query, body), "content-type": "application/xml"}
        request = urllib.request.Request(  # noqa: S310
            url, data=body if method == "PUT" else None, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_S_MAX) as response:  # noqa: S310
                return _Answer(response.status, response.read(ANSWER_BYTES_MAX))
        except urllib.error.HTTPError as error:
            with error:
                answer = _Answer(error.code, error.read(ANSWER_BYTES_MAX))
            if answer.status >= 500:
                raise self._away(f"it answered {answer.status}") from None
            return answer
        except (OSError, http.client.HTTPException) as error:
            raise self._away(type(error).__name__) from None

    def _headers(self, method: str, query: str, body: bytes) -> dict[str, str]:
        """The headers of a request, with its signature where there are credentials."""
        digest = hashlib.sha256(body).hexdigest()
        time = self._clock().strftime("%Y%m%dT%H%M%SZ")
        headers = {
            "content-md5": base64.b64encode(
                hashlib.md5(body, usedforsecurity=False).digest()
            ).decode(),
            "host": urlsplit(self._options.endpoint).netloc,
            "x-amz-content-sha256": digest,
            "x-amz-date": time,
        }
        if not self._options.access_key:
            return headers
        names = ";".join(headers)
        canonical = "\n".join(
            (
                method,
                f"/{self._name}",
                query,
                *(f"{name}:{value}" for name, value in headers.items()),
                "",
                names,
                digest,
            )
        )
        scope = f"{time[:8]}/{self._options.region}/s3/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self._options.secret_key}".encode()
        for part in (time[:8], self._options.region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        wanted = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}".encode()
        signature = hmac.new(key, wanted, hashlib.sha256).hexdigest()
        credential = f"{self._options.access_key}/{scope}"
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, "
            f"Signature={signature}"
        )
        return headers

    def _refused(self, answer: _Answer, what: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"S3 bucket '{self._name}' at {self._options.endpoint} answered {answer.status} when "
            f"asked to {what}",
            reason="BUCKET_MISSING" if answer.status == 404 else "STORE_ACCESS_DENIED",
        )

    def _away(self, what: str) -> Unavailable:
        return Unavailable(
            f"S3 bucket '{self._name}' at {self._options.endpoint} is away: {what}",
            reason="STORE_UNAVAILABLE",
            retry_after=RETRY_AFTER_S,
        )
