"""Published weights as the start of a backbone: where they are (sources), what they hold (reading), what fits (matching)."""
