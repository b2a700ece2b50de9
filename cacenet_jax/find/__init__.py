"""Photographs of one's own from the command line, a module for each mode: index.py, search.py and group.py.

Each runs its mode on `cacenet_jax.index`, prints a table and writes files.
"""
