"""Person re-identification data sets as tensorflow-datasets builders, usable without TensorFlow.

    prepared = prepare("market1501", root="data", data_dir="data/prepared")
    train = open_split(prepared, "train")
    train.pids, train.camids, train.names, train.records[0]["image"]

Read `base` (the record, the scan of a source, checks), `prepare` (writing records once), `split` (reading them), `source`
(folders and zips), then a data set: a module with a builder class, such as `market1501`, and a line in `prepare`.
"""

from cacenet_jax.data.builders.prepare import available, prepare
from cacenet_jax.data.builders.split import Prepared, Records, Split, open_split

__all__ = ["Prepared", "Records", "Split", "available", "open_split", "prepare"]
