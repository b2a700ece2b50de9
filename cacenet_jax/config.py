"""All config fields, with the paper's settings as defaults.

A file in configs/ starts from `paper()` and overrides the fields of its experiment. The data set, the backbone and the
pair stage have additional fields (`data.options`, `model.backbone_fields` and `model.pair`). Their defaults are defined
in the modules that implement them, so these dictionaries are empty here.
"""

import ml_collections
from ml_collections.config_dict import placeholder

NO_PAIR_STAGE = "none"  # value of model.pair_stage for the individual baseline


def paper() -> ml_collections.ConfigDict:
    """Return the settings of the paper's section 4.2; docs/paper_notes.md lists choices that the paper leaves open."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = placeholder(str)  # workdir of a trained network to initialise from
    # Backbone weights: a file, hub:OWNER/NAME or package:NAME. With --mode=import, weights of a complete network.
    config.pretrained = placeholder(str)
    config.epochs = 80
    config.devices = 0  # local devices that each process uses, 0 for all
    config.parallel = "pmap"  # or shard_map
    config.log_every = 10  # steps
    config.checkpoint_every = 0  # steps, 0 for once per epoch
    config.checkpoints_kept = 3  # number of newest checkpoints to keep, besides the best by validation mAP
    config.grace_s = 30.0  # seconds allowed for saving after SIGTERM or Ctrl-C
    config.eval_every = 0  # epochs between evaluations on the validation identities, 0 for only at the end

    config.data = ml_collections.ConfigDict()
    config.data.name = "market1501"
    config.data.root = placeholder(str)  # the user's folder or zip
    config.data.dir = "data/prepared"  # folder of the prepared data sets
    config.data.options = ml_collections.ConfigDict()  # options of the data set, such as seed or check_counts
    config.data.on_error = "raise"  # or skip: leave broken images out, and list them
    config.data.height = 384
    config.data.width = 128
    config.data.num_ids = 4  # P
    config.data.images_per_id = 4  # K
    config.data.hard_pool = 0  # look-alikes from which the rest of a batch is drawn, 0 for all identities
    config.data.val_share = 0.0  # share of the training identities held out for validation
    config.data.val_seed = 0
    config.data.val_group = 1  # consecutive identities held out together; synthetic look-alikes come in fours
    config.data.parts = placeholder(str)  # folder of part labels for data sets without them (semantic alignment)
    config.data.workers = 0  # worker processes; 0 is faster on small machines

    config.augment = ml_collections.ConfigDict()
    config.augment.flip = 0.5  # probability
    config.augment.pad = 10  # pixels
    config.augment.erase = 0.5  # probability

    config.model = ml_collections.ConfigDict()
    config.model.backbone = "resnet50"  # a name in models/backbones, or MODULE:CLASS
    config.model.backbone_fields = ml_collections.ConfigDict()  # fields of the backbone, such as last_stride
    config.model.pair_stage = "conditional"  # or released, keypoints, evidence, MODULE:CLASS; none for the baseline
    config.model.pair = ml_collections.ConfigDict()  # fields of the pair stage, such as alignment or kind
    config.model.embed_dim = 768  # F
    config.model.pooling = "mean"  # pooling before the individual head; or gem, the generalised mean
    config.model.relu = False  # apply a ReLU to embeddings before classifiers and triplet losses
    config.model.dropout = 0.0  # dropout rate before classifiers
    config.model.head_bias = False  # biases in the embedding layer of f(I) and in its classifier, as in torchreid
    config.model.embedding_relu = False  # apply a ReLU to f(I) itself, in retrieval too, as torchreid's OSNet does
    config.model.frozen = False  # train only the pair stage, on top of the network from init_from
    config.model.pair_memory_mib = 1024.0  # per device, for the training pair grid; larger grids are split
    config.model.dtype = "float32"  # or bfloat16

    config.loss = ml_collections.ConfigDict()
    config.loss.margin = 0.5
    config.loss.alpha = 0.9
    config.loss.identity = 1.0
    config.loss.triplet = 1.0
    config.loss.pair_identity = 1.0
    config.loss.pair_triplet = 1.0
    config.loss.evidence = 1.0  # weight of the list loss on the local-evidence scores
    config.loss.label_smoothing = 0.0  # for the identity loss on f(I)

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "sgd"  # or adamw
    config.optim.learning_rate = 6.25e-3  # peak for a batch of reference_batch images
    config.optim.reference_batch = 16
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.warmup_epochs = 5.0
    config.optim.clip_norm = 0.0  # maximum global gradient norm, 0 to disable clipping
    config.optim.attention_scale = 1.0  # learning-rate multiplier for w and w'

    config.eval = ml_collections.ConfigDict()
    config.eval.data = placeholder(str)  # data set that --mode=evaluate uses instead of data.name
    config.eval.top_k = 100
    config.eval.camera_filter = True
    config.eval.mix = 0.5  # weight of the pair distance in the mixed ranking
    config.eval.distance = "cosine"  # or euclidean, of embeddings that are not normalised
    config.eval.rerank = "none"  # or k_reciprocal, query_expansion: further rows of the table
    config.eval.verification = False  # also the ROC curve's area, TPR at fixed FPR and trapezoid mAP
    config.eval.flip = True  # average the maps of an image and its mirror image
    config.eval.batch_size = 64
    config.eval.pairs_per_call = 512  # per device
    config.eval.map_dtype = "bfloat16"  # or float32; storage dtype of the feature maps for re-scoring
    config.eval.device_gib = 0.0  # device memory for stored maps, 0 for 60%; if exceeded, they stream from the host
    config.eval.memory_gib = 4.0  # host memory per process; if exceeded, maps go to temporary files in data.dir
    config.eval.checkpoint = "last"  # or best, by validation mAP

    config.visualize = ml_collections.ConfigDict()  # settings of --mode=visualize
    config.visualize.num_queries = 4
    config.visualize.queries = ""  # names of the queries to draw, NAME,NAME; empty for those that changed most
    config.visualize.pair = ""  # names of two images to draw together, A,B, of query or gallery
    config.visualize.ranks = 10  # length of a ranked list
    config.visualize.lines = 12  # strongest correspondences drawn between two images

    config.export = ml_collections.ConfigDict()  # settings of --mode=export
    config.export.platforms = "cpu,cuda,tpu"  # target platforms of the artefacts; rocm is also supported
    config.export.check_images = 3  # random images for comparing the artefacts with the model
    config.lock()  # make a misspelt field in a config file an error
    for free in (config.data.options, config.model.backbone_fields, config.model.pair):
        free.unlock()
    return config
