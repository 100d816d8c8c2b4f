"""bench_cancel: how fast an engine's sequence is free again once its client is gone."""
