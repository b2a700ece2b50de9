"""Person re-identification data sets as tensorflow-datasets builders, without TensorFlow.

    prepared = prepare("market1501", root="data", data_dir="data/prepared")
    train = open_split(prepared, "train")
    train.pids, train.camids, train.names, train.records[0]["image"]

A data set is a module with a builder class (see base.py) and a line in prepare.py.
"""

from cacenet_jax.data.builders.prepare import available, prepare
from cacenet_jax.data.builders.split import Prepared, Records, Split, open_split

__all__ = ["Prepared", "Records", "Split", "available", "open_split", "prepare"]
