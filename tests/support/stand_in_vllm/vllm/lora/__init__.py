"""Stands in for the package of adapters."""
