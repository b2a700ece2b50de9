"""Data sets and the input pipeline.

Read `builders` (data sets as prepared records) and `synthetic` (the renderer of the embedded data set), then `subsets`
(training and validation by identity), `sampler` (P x K batches), `pipeline` (decoding on the host to a `batch`), `augment`
(augmentation on the device) and `part_labels` (body parts, for semantic alignment).
"""
