"""One file, one question; `python -m benchmarks.<name> --help` says how each is run."""
