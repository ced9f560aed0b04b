"""The SDK: an async client and its sync face, over the four services.

`smile.client.records` and its siblings are what services use among themselves.
"""
