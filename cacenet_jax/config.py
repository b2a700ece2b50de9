"""Every field of a config with its default: the settings of the paper.

A file in configs/ takes `paper()` and changes what its experiment changes. Three fields are choices that bring fields of
their own: a data set (`data.options`), a backbone (`model.backbone_fields`) and a pair stage (`model.pair`). Defaults of
those stand with the choice, so that the dictionaries here start empty.
"""

import ml_collections
from ml_collections.config_dict import placeholder

NO_PAIR_STAGE = "none"  # of model.pair_stage: the individual baseline


def paper() -> ml_collections.ConfigDict:
    """Return the settings of the paper's section 4.2; docs/paper_notes.md says where it is silent and what was chosen."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = placeholder(str)  # workdir of a trained network, whose parameters are the start of this run
    # Weights of the backbone: a file, hub:OWNER/NAME or package:NAME; with --mode=import those of a whole network.
    config.pretrained = placeholder(str)
    config.epochs = 80
    config.devices = 0  # local devices that each process uses, 0 for all
    config.parallel = "pmap"  # or shard_map
    config.log_every = 10  # steps
    config.checkpoint_every = 0  # steps, 0 for once an epoch
    config.eval_every = 0  # epochs between evaluations on the validation identities, 0 for the end alone

    config.data = ml_collections.ConfigDict()
    config.data.name = "market1501"
    config.data.root = placeholder(str)  # the user's folder or zip
    config.data.dir = "data/prepared"  # where prepared data sets are kept
    config.data.options = ml_collections.ConfigDict()  # options of the data set: seed, check_counts
    config.data.height = 384
    config.data.width = 128
    config.data.num_ids = 4  # P
    config.data.images_per_id = 4  # K
    config.data.hard_pool = 0  # draw a batch from one identity and so many that look most like it; 0: from all
    config.data.val_share = 0.0  # share of the training identities held out for validation
    config.data.val_seed = 0
    config.data.val_group = 1  # consecutive identities held out together: look-alikes of the synthetic data are 4
    config.data.parts = placeholder(str)  # folder of part labels, for data without their own (semantic alignment)
    config.data.workers = 0  # worker processes; 0 is faster on small machines

    config.augment = ml_collections.ConfigDict()
    config.augment.flip = 0.5
    config.augment.pad = 10  # pixels
    config.augment.erase = 0.5

    config.model = ml_collections.ConfigDict()
    config.model.backbone = "resnet50"  # a name in models/backbones, or MODULE:CLASS
    config.model.backbone_fields = ml_collections.ConfigDict()  # fields of the backbone: width, last_stride, non_local
    config.model.pair_stage = "conditional"  # or released, keypoints, evidence, MODULE:CLASS; none: the baseline
    config.model.pair = ml_collections.ConfigDict()  # fields of the pair stage: alignment, kind, clue_weight
    config.model.embed_dim = 768  # F
    config.model.pooling = "mean"  # of a map to f(I); or gem, the generalised mean
    config.model.relu = False  # classifiers and triplet losses see embeddings after a ReLU
    config.model.dropout = 0.0  # share of what a classifier sees that is 0 in training
    config.model.frozen = False  # train the pair stage alone, on the network of init_from
    config.model.pair_memory_mib = 1024.0  # of a training step's pair grid on a device; past it blocks are recomputed
    config.model.dtype = "float32"  # or bfloat16

    config.loss = ml_collections.ConfigDict()
    config.loss.margin = 0.5
    config.loss.alpha = 0.9
    config.loss.identity = 1.0
    config.loss.triplet = 1.0
    config.loss.pair_identity = 1.0
    config.loss.pair_triplet = 1.0
    config.loss.evidence = 1.0  # of the list loss on the scores of local evidence
    config.loss.label_smoothing = 0.0  # of the identity loss on f(I)

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "sgd"  # or adamw
    config.optim.learning_rate = 6.25e-3  # peak, for a batch of reference_batch images
    config.optim.reference_batch = 16
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.warmup_epochs = 5.0
    config.optim.clip_norm = 0.0  # largest norm of the gradient, 0 for no limit
    config.optim.attention_scale = 1.0  # learning rate of w and w' relative to the rest

    config.eval = ml_collections.ConfigDict()
    config.eval.data = placeholder(str)  # data set that --mode=evaluate scores in place of data.name
    config.eval.top_k = 100
    config.eval.camera_filter = True
    config.eval.mix = 0.5  # weight of the pair distance in the mixed ranking
    config.eval.flip = True  # average the maps of an image and its mirror image
    config.eval.batch_size = 64
    config.eval.pairs_per_call = 512  # of one device
    config.eval.map_dtype = "bfloat16"  # or float32: how the maps that are compared in re-scoring are stored
    config.eval.device_gib = 0.0  # of a device for these maps, 0 for 0.6 of it; more are streamed from the host
    config.eval.memory_gib = 4.0  # of a process's host for these maps; more lie in temporary files under data.dir
    config.eval.checkpoint = "last"  # or best, by validation mAP

    config.visualize = ml_collections.ConfigDict()  # of --mode=visualize
    config.visualize.num_queries = 4
    config.visualize.ranks = 10  # of a ranked list
    config.visualize.lines = 12  # strongest correspondences of two images

    config.export = ml_collections.ConfigDict()  # of --mode=export
    config.export.platforms = "cpu,cuda,tpu"  # what the artefacts run on; rocm too
    config.export.check_images = 3  # random images that an artefact is compared with the model on, also one by itself
    config.lock()  # a misspelt field in a config file is an error, not a new field
    for free in (config.data.options, config.model.backbone_fields, config.model.pair):
        free.unlock()
    return config
