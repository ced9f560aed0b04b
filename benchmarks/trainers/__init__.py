"""Programs that train one classifier each, for `benchmarks.training`."""
