"""Storage's four proto services: decode, await the domain, encode."""
