"""Person re-identification data sets as TensorFlow Datasets builders that do not require TensorFlow.

    prepared = prepare("market1501", root="data", data_dir="data/prepared")
    train = open_split(prepared, "train")
    train.pids, train.camids, train.names, train.records[0]["image"]

Read in this order: `scan` (labelled files, checks and records), `base` (builders), `prepare` (writing records once),
`split` (reading records) and `source` (folders and zip archives). Each data set is a module with a builder class, such
as `market1501`, and an entry in `prepare`.
"""

from cacenet_jax.data.builders.prepare import available, prepare
from cacenet_jax.data.builders.scan import SPLITS, TEST_SPLITS
from cacenet_jax.data.builders.split import Prepared, Records, Split, open_split

__all__ = ["SPLITS", "TEST_SPLITS", "Prepared", "Records", "Split", "available", "open_split", "prepare"]
