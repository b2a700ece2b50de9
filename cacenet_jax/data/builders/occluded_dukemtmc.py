"""Occluded-DukeMTMC (Miao et al., Pose-Guided Feature Alignment, ICCV 2019)."""

from collections.abc import Mapping
from typing import ClassVar

from cacenet_jax.data.builders.market_style import MarketStyleBuilder


class OccludedDukemtmc(MarketStyleBuilder, skip_registration=True):
    """Builder for Occluded-DukeMTMC, a split of DukeMTMC-reID in which every query is occluded."""

    name = "occluded_dukemtmc"
    SUMMARY = "Occluded-DukeMTMC: DukeMTMC-reID split anew, occluded queries."
    HOME = (
        "see github.com/lightas/Occluded-DukeMTMC-Dataset for the split; its images are DukeMTMC-reID's, "
        "which was "
        "withdrawn by its authors: point the data root at a copy that you have"
    )
    FOLDER_NAMES = ("Occluded_Duke", "Occluded-DukeMTMC-reID", "Occluded-DukeMTMC")
    COUNTS: ClassVar[Mapping[str, int]] = {"train": 15_618, "query": 2_210, "gallery": 17_661}
