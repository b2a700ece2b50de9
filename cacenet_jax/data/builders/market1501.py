"""Market-1501 (Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015)."""

from collections.abc import Mapping
from typing import ClassVar

from cacenet_jax.data.builders.market_style import MarketStyleBuilder


class Market1501(MarketStyleBuilder, skip_registration=True):
    """Builder for Market-1501. Junk images (pid -1) are dropped; distractors (pid 0) stay in the gallery."""

    name = "market1501"
    SUMMARY = "Market-1501: 1,501 identities, 6 cameras, detected boxes."
    HOME = "get Market-1501 from its authors' page zheng-lab.cecs.anu.edu.au/Project/project_reid.html"
    FOLDER_NAMES = ("Market-1501-v15.09.15", "Market-1501", "market1501")
    COUNTS: ClassVar[Mapping[str, int]] = {"train": 12_936, "query": 3_368, "gallery": 15_913}
