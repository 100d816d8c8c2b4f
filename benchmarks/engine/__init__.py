"""bench_engine: the tools it builds, both engines behind one driver, and the loop's own time."""
