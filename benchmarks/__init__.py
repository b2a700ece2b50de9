"""Benchmarks of speed, memory and agreement; `python -m benchmarks.<name> --help` describes each."""
