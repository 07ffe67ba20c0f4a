"""Which action runs next, without I/O: the actions, runs, delays and free slots."""
