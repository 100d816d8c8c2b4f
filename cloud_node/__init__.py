"""The cloud node: a link to the gateways beside an engine that already runs, or with one of its own."""
