"""A speed study in words, tables and files; the chart is in reporting/charts."""
