"""What commands print: rows, tables, trees, details."""
