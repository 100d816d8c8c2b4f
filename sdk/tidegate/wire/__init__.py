"""How Tidegate's words travel: protobuf conversions, the status table, channel options."""
