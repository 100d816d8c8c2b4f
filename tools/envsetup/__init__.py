"""What tools/setup_env.py is made of; standard library only."""
