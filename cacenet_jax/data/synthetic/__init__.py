"""Renderer of synthetic_pedestrians.

Read `specification` (the settings), `people` (identities and look-alike groups), `body` (a person as geometric primitives),
`rendering` (the rasteriser), `scene` (cameras, backgrounds, occluders), `dataset` (images and splits) and `contact_sheet`
(an overview picture).
"""
