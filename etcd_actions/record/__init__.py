"""From an ending to its mark: the leader notifies the run service, then marks."""
