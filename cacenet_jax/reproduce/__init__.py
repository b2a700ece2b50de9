"""The paper's tables as one command: --mode=reproduce."""
