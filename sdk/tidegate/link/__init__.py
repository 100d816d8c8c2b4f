"""The node's side of the link, and the codec both sides share."""
