"""The device daemon: one node with its own API, with or without a gateway."""
