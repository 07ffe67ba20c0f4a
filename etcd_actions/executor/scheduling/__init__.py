"""The choice of the next action, without I/O: actions, runs, delays and free slots."""
