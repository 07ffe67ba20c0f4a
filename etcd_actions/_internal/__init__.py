"""Small parts that every room may use, and that no program outside does."""
