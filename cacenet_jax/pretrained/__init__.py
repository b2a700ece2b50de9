"""Conversion of weights published for other frameworks, for a backbone or a whole network.

Read, in this order, `sources` (local files of weights on disk, on the Hugging Face Hub or in an installed package),
`reading`, `torch_file` and `inert_pickle` (reading of files as named arrays, without PyTorch and without running
anything in them), `matching` (conversion of named arrays to parameters, with all mismatches in one error) and
`backbone` (all of these steps for config.pretrained).
"""
