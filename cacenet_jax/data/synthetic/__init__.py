"""Renderer of the synthetic_pedestrians data set.

Read in this order: `specification` (settings), `people` (identities and look-alike groups), `body` (a person as
geometric primitives), `rendering` (rasteriser), `scene` (cameras, backgrounds, occluders), `dataset` (images and
splits) and `contact_sheet` (overview picture).
"""
