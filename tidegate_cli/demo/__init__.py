"""`tidegate demo`: what convinces a sceptic in two minutes, act by act."""
