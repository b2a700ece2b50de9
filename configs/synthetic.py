"""The main job: CACE-Net on the embedded synthetic pedestrians, from scratch."""

from ml_collections import ConfigDict

from cacenet_jax.config import paper


def get_config() -> ConfigDict:
    config = paper()
    config.epochs = 25
    config.log_every = 10
    config.eval_every = 0
    config.data.name = "synthetic_pedestrians"
    config.data.options = ConfigDict({"num_train_ids": 160, "num_test_ids": 80, "images_per_id": 16, "seed": 0})
    config.data.height = 128
    config.data.width = 64
    config.data.num_ids = 16
    config.data.val_share = 0.1
    config.augment.pad = 5
    config.model.backbone = "resnet_small"
    config.model.width = 24
    config.model.embed_dim = 128
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 64
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 2.0
    config.eval.top_k = 50
    return config
