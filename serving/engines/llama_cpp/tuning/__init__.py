"""How the engine fits itself to its device: threads while it runs, and what it measures of itself first."""
