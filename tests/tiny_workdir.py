"""A workdir of a tiny network that is not trained, and photographs of a few people by two cameras."""

import csv
from runpy import run_path

import cv2
import jax
import numpy as np
from command import TINY

from cacenet_jax import experiment
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.workdir import claim_workdir
from cacenet_jax.train_step import create_state

PEOPLE, CAMERAS, IMAGES = 8, 2, 3


def photographs(folder, people=range(PEOPLE)):
    """Write the images and manifest.csv: a person is four bands of colour, seen in noise."""
    folder.mkdir()
    rows = []
    for person in people:
        bands = np.random.default_rng([person, 1]).integers(16, 240, (4, 1, 3))
        clothes = np.repeat(np.repeat(bands, 8, axis=0), 16, axis=1)
        for camera in range(CAMERAS):
            for number in range(IMAGES):
                noise = np.random.default_rng([person, camera, number]).integers(-8, 9, clothes.shape)
                name = f"person{person}_camera{camera}_{number}.png"
                cv2.imwrite(str(folder / name), (clothes + noise).astype(np.uint8))
                rows.append((name, f"person {person}", f"camera {camera}"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "identity", "camera"), *rows])
    return folder


def workdir(folder, data=None, **fields):
    """Write a workdir with a network that is not trained, as if on `data` (a `Subset.summary`) or imported."""
    config = run_path(str(TINY))["get_config"]()
    config.eval.map_dtype, config.eval.mix = "float32", 0.7
    config.update_from_flattened_dict(fields)
    settings = experiment.read(config)
    state = create_state(settings.network.build(8), settings.optimizer(1), jax.random.key(0), (32, 16))
    claim_workdir(folder, to_dict(config), data or {"imported": "nothing", "identities": 8})
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, jax.device_put(jax.device_get(state), replicated_sharding(global_mesh(1))))
    checkpoints.close()
    return folder, config
