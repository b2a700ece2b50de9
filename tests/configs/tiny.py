"""A network and data small enough for a test: 32 x 16 pixels, resnet_tiny; tiny.py:market1501 takes another data set."""

from ml_collections import ConfigDict

from cacenet_jax.config import paper

PEOPLE = {"num_train_ids": 8, "num_test_ids": 4, "images_per_id": 6, "height": 32, "width": 16, "supersample": 1}
OPTIONS = {"synthetic_pedestrians": PEOPLE, "market1501": {"check_counts": False}}


def get_config(data: str = "synthetic_pedestrians") -> ConfigDict:
    config = paper()
    config.epochs = 4
    config.log_every = 1
    config.devices = 1
    config.data.name = data
    config.data.options = ConfigDict(OPTIONS.get(data, {}))
    config.data.height = 32
    config.data.width = 16
    config.data.images_per_id = 2
    config.augment.pad = 2
    config.model.backbone = "resnet_tiny"
    config.model.embed_dim = 16
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_epochs = 1.0
    config.eval.top_k = 8
    config.eval.batch_size = 8
    config.eval.pairs_per_call = 64
    return config
