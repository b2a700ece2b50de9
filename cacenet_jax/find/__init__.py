"""Photographs of one's own from the command line: --mode=index, search and group.

commands.py runs the modes on `cacenet_jax.index`, prints their tables and writes their files.
"""
