"""A network and a data set small enough for a test: 8 + 4 rendered people of 6 images, 32 x 16 pixels, resnet_tiny."""

from ml_collections import ConfigDict

from cacenet_jax.config import paper


def get_config() -> ConfigDict:
    config = paper()
    config.epochs = 4
    config.log_every = 1
    config.devices = 1
    config.data.name = "synthetic_pedestrians"
    config.data.options = ConfigDict({
        "num_train_ids": 8, "num_test_ids": 4, "images_per_id": 6, "height": 32, "width": 16, "supersample": 1,
    })  # fmt: skip
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
