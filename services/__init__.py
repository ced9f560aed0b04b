"""The services of SMILE, each runnable alone: `python -m services.{name}`."""
