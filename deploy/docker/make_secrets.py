"""Write the keys of a new installation as environment lines.

    python3 deploy/docker/make_secrets.py > .env

Needs nothing but Python. The operator key is shown as a comment; services get only its SHA-256.
"""

from __future__ import annotations

import hashlib
import secrets
import sys


def main() -> None:
    operator_secret = secrets.token_urlsafe(32)
    lines = [
        f"# Operator key, for `smile tenants create`: smileop_{operator_secret}",
        f"SMILE_OPERATOR_KEY_SHA256={hashlib.sha256(operator_secret.encode()).hexdigest()}",
        f"SMILE_SERVICE_KEY=smilesvc_{secrets.token_urlsafe(32)}",
        f"SMILE_SIGNING_KEYS=k1:{secrets.token_urlsafe(32)}",
        f"S3_ACCESS_KEY=smile-{secrets.token_hex(4)}",
        f"S3_SECRET_KEY={secrets.token_urlsafe(32)}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
