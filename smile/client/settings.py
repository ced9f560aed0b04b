"""Where the platform is and who is asking: from arguments or from the environment."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from smile.errors import InvalidArgument, Unauthenticated


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of the four services, `host:port`. The defaults are this machine's."""

    storage: str = "localhost:7101"
    creator: str = "localhost:7102"
    trainer: str = "localhost:7103"
    processor: str = "localhost:7104"

    @classmethod
    def parse(cls, text: str) -> Endpoints:
        """Reads `creator=host:port,storage=host:port`; services left out keep their defaults.

        Raises:
            InvalidArgument: an entry is not `service=address` with a service of SMILE, or repeats.
        """
        services = [field.name for field in fields(cls)]
        found: dict[str, str] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            service, _, address = entry.partition("=")
            if service not in services or not address or service in found:
                raise InvalidArgument(
                    f"endpoints are 'service=host:port', one each for {', '.join(services)}, "
                    f"separated by commas; got {entry[:80]!r}",
                    reason="ENDPOINTS_INVALID",
                )
            found[service] = address
        return replace(cls(), **found)


class _Environment(BaseSettings):
    """`SMILE_API_KEY` and `SMILE_ENDPOINTS`."""

    model_config = SettingsConfigDict(env_prefix="SMILE_", frozen=True, extra="ignore")

    api_key: SecretStr | None = None
    endpoints: str = ""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A key and where to present it."""

    api_key: str
    endpoints: Endpoints

    @classmethod
    def of(cls, api_key: str | None, endpoints: Endpoints | str | None) -> ClientSettings:
        """The given values; for those not given, the environment's.

        Raises:
            Unauthenticated: no key is given and `SMILE_API_KEY` is not set.
            InvalidArgument: the endpoints are malformed.
        """
        environment = _Environment()
        if api_key is None and environment.api_key is not None:
            api_key = environment.api_key.get_secret_value()
        if not api_key:
            raise Unauthenticated(
                "no API key: give api_key, or set SMILE_API_KEY in the environment",
                reason="KEY_MISSING",
            )
        if endpoints is None:
            endpoints = environment.endpoints
        if isinstance(endpoints, str):
            endpoints = Endpoints.parse(endpoints)
        return cls(api_key.strip(), endpoints)
