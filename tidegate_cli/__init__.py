"""The `tidegate` command: a user's and an operator's hands. Starts programs only as child processes."""
