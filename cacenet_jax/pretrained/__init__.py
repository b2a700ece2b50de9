"""Weights published by other frameworks, as the start of a backbone or a whole network.

Read `sources` (from a name to a local file: a path, the Hugging Face Hub, an installed package), `reading` and `torch_file`
(from a file to named arrays, without PyTorch), `matching` (from named arrays to parameters, with all mismatches in one
error) and `backbone` (all of it, for config.pretrained).
"""
