"""Pure domain and policy. Standard library only: no tasks, no clock, no randomness, no I/O."""
