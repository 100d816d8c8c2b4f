"""Schemas to try, and a judge of answers that shares no code with what made them."""
