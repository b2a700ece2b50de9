"""Reproduction of the paper's tables with one command: --mode=reproduce."""
