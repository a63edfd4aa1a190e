"""A finished or running folder turned into pages, tables, comparisons."""
