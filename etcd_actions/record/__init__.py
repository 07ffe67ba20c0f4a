"""From a terminal state to its mark: the leader reports it to the run service, then marks."""
