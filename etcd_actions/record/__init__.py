"""The leader: it reports states to the run service, and writes the mark of terminal ones."""
