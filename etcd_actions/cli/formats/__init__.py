"""The output of commands: rows, tables, trees, details; and writing to standard output."""
