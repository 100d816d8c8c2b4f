"""bench_link: one gateway process with a thousand nodes on its links."""
