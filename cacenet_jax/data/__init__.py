"""Data sets and the input pipeline.

Start with `builders` (data sets as prepared records) and `synthetic` (renderer of the default data set). Then read
`subsets` (training and validation by identity), `sampler` (P x K batches), `images` (decoding and resizing), `pipeline`
(batches on the host, as a `batch`), `augment` (augmentation on the device) and `part_labels` (body parts for semantic
alignment). `image_files` and `json_files` hold the rules for files that may be damaged.
"""
