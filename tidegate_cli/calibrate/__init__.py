"""From the outcome log to certificates: reading, versions, and what is told of them."""
