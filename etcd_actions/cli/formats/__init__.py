"""What commands print: rows, tables, trees, details; and the standard output that takes it."""
