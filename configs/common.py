"""The whole default config. Other configs change a few fields of it; see configs/sigma2.py.

A field is set on the command line as `--config.optim.learning_rate=3e-4`. Sizes are
(height, width); points and boxes are (x, y); tuples are written as `"(256, 256)"`.
"""

from ml_collections import ConfigDict

from heatmap.errors import UserError
from heatmap.fields import nearest


def get_config() -> ConfigDict:
    """Returns a fresh copy of the defaults."""
    config = ConfigDict()
    config.seed = 0  # of initial weights, data order, augmentation and dropout

    data = config.data = ConfigDict()
    data.name = "stick_figures"  # of input_pipeline.DATASETS; 'hawaii+biorepo' reads both
    data.root = ""  # the data's folder (of several: what holds a folder NAME for each); for
    # stick_figures the TFDS folder, '' = its default; specimens need none
    data.arms = "own_side"  # stick_figures: 'own_side' or 'free' (hands cannot be told apart)
    data.category = ""  # coco: the category's name; '' = the only one with keypoints
    data.image_size = (128, 128)  # of the network's input, pixels
    data.channels = 1  # 1 = grey, 3 = RGB
    data.mean = (0.0,)  # subtracted from pixels in [0, 1]; one value, or one per channel
    data.std = (1.0,)  # then divided by
    data.crop = "auto"  # 'image', 'box', or 'auto' = box where an image holds several instances
    data.box_padding = 1.25  # a box is scaled by this before it is cropped
    data.fit = "stretch"  # 'stretch' to the input, or 'pad' to keep the aspect ratio
    data.missing = "unknown"  # a missing label is 'unknown' (weight 0) or 'absent' (empty map)
    data.pixel_center = 0.0  # in the label files, the centre of the first pixel: 0.0 or 0.5
    data.flip_pairs = ()  # (('left_ear', 'right_ear'),); () = as the data says
    data.interchangeable_pairs = ()  # (('head', 'tail'),); () = as the data says
    data.torso = ()  # two names, whose distance is the reference of PCK-torso
    data.oks_sigmas = ()  # per point, for OKS and AP; () = as the data says
    data.measurements = ()  # (('length', 'head', 'tail'),); () = as the data says
    data.not_two_points = "drop"  # beetles: a specimen with a bent or empty line goes, or 'mask'
    data.on_error = "raise"  # an unreadable picture: 'raise', or 'skip' and list it
    data.verify = True  # decode every picture once before training
    data.max_megapixels = 64.0  # a larger picture is refused
    data.cache = ""  # keep decoded pictures: '' = no, in 'memory', on 'disk' for other runs too, or
    # those to train on in the memory of each 'device', which then augments
    data.workers = 0  # threads that read and augment, 0 = one per core

    split = data.split = ConfigDict()
    split.method = "given"  # 'given' by the data, by 'hash' of the group, in time 'blocks', or
    # 'species_groups': a few whole group pictures of every species validate
    split.group_by = ""  # what must stay together: a field of the data; '' = the reader's choice
    split.fractions = (0.8, 0.1, 0.1)  # train, val, test
    split.folds = 0  # blocks: hold out 1/folds as the test split, 0 = use the fractions
    split.fold = 0  # which of the folds is the test split
    split.gap = 1  # blocks: pictures left out on each side of a held-out block
    split.cal = 0.0  # share of the records, of those that would train, whose groups are held out to
    # calibrate intervals with (python -m heatmap.calibration); 'given' data may name a cal split
    split.salt = 0  # another number gives another split by hash or species_groups

    augment = config.augment = ConfigDict()  # of training pictures; these defaults change nothing
    augment.where = "host"  # the pixel work is done in tf.data, or on the 'device' in the step
    augment.crop_scale = (1.0, 1.0)  # area of the random crop, as a share of the picture
    augment.crop_ratio = (1.0, 1.0)  # its width/height, relative to the picture's
    augment.scale = (1.0, 1.0)  # zoom about the centre
    augment.rotation = 0.0  # at most so many degrees either way
    augment.rotation_prob = 1.0
    augment.horizontal_flip = 0.0  # probability; names of left and right follow
    augment.vertical_flip = 0.0  # probability
    augment.brightness = 0.0  # factor in [1 - b, 1 + b]
    augment.contrast = 0.0
    augment.saturation = 0.0
    augment.hue = 0.0  # shift in [-h, h] turns of the colour wheel

    targets = config.targets = ConfigDict()
    targets.heatmap_size = (64, 64)
    targets.sigma = 2.0  # of the Gaussian, heatmap pixels
    targets.equal_energy = (
        False  # lower the peak, 2/σ, so that the map's energy is the same for all σ
    )
    targets.render = "device"  # 'host' = in tf.data, 'device' = inside the jitted step

    model = config.model = ConfigDict()
    model.name = "unet"  # a key of heatmap.models.MODELS
    model.skip = True  # unet: concatenate encoder features
    model.dropout = 0.5  # regression: before the last two layers
    model.dtype = "float32"  # of the computation; weights and losses stay float32
    model.backbone = "dinov3_vits16"  # vit: a key of heatmap.models.vit.ARCHITECTURES
    model.backbone_init = "pretrained"  # vit: or 'random', from the seed
    model.backbone_weights = ""  # vit: the folder that `python -m heatmap.models.convert` wrote
    model.freeze_backbone = True  # vit: train the head only
    model.head = "deconv"  # vit: 'deconv', 'simple' (both heatmaps) or 'cls_mlp' (coordinates)
    model.keep_features = False  # vit: run a frozen backbone once per picture; no augmentation
    model.remat = False  # vit: compute the blocks again for their gradients, to save memory
    model.shards = 1  # devices that hold the parameters together, 1 = each holds all of them

    loss = config.loss = ConfigDict()
    loss.name = "mse"  # a key of heatmap.losses.LOSSES
    loss.interchangeable = False  # take the cheaper order of interchangeable pairs
    loss.coordinate_weight = 0.0  # also train what the decoder reads off the maps, 0 = off
    loss.oob_policy = "supervise_oob"  # points out of the input: taught (as empty maps), or
    # 'mask_any_oob' / 'mask_all_oob': lines with any / all of their ends out have weight 0

    decoder = config.decoder = ConfigDict()
    decoder.name = "dark"  # a key of heatmap.decoding.DECODERS
    decoder.beta = 1.0  # soft_argmax: inverse temperature
    decoder.radius = 3  # local_soft_argmax and scores: half width of the window, heatmap pixels
    decoder.grid = "centres"  # soft_argmax: means of pixel 'centres', or of a grid to the 'edges'
    decoder.force = False  # let a decoder read maps of a loss that does not fit it

    optim = config.optim = ConfigDict()
    optim.name = "adam"  # 'adam', 'adamw' or 'sgd'
    optim.learning_rate = 1e-3  # the peak
    optim.schedule = "constant"  # 'constant', 'cosine', 'wsd' or 'step'
    optim.warmup_steps = 0  # linear, before any schedule
    optim.decay_fraction = 0.2  # wsd: the last share of the steps goes linearly to zero
    optim.step_boundaries = (0.6, 0.85)  # step: shares of the run after warm-up; there it drops
    optim.step_factor = 0.1  # step: by this factor
    optim.momentum = 0.0  # sgd
    optim.weight_decay = 0.0  # adamw: decoupled
    optim.decay_paths = (r"kernel$",)  # regular expressions of the parameters that decay
    optim.freeze_paths = ()  # regular expressions of the parameters that stay as they are
    optim.clip_norm = 0.0  # clip the gradient's global norm, 0 = off
    optim.ema_decay = 0.0  # evaluate a running average of the weights, 0 = off

    train = config.train = ConfigDict()
    train.epochs = 30  # exactly one of epochs and steps is positive
    train.steps = 0
    train.batch_size = 32  # over all devices
    train.max_hours = 0.0  # from each start; then save, score the best so far, stop; 0 = no limit
    train.save_every_steps = 0  # checkpoint to resume from, 0 = at every evaluation
    train.eval_every_epochs = 1
    train.eval_every_steps = 0  # 0 = by epochs
    train.steps_per_dispatch = 1  # so many in one program, for steps of a few milliseconds
    train.best_metric = ""  # decides the best checkpoint, e.g. 'val/pck@0.05'; '' = median error

    evaluation = config.eval = ConfigDict()
    evaluation.batch_size = 32
    evaluation.metrics = ("pck", "error_px", "oks_ap", "lines")  # keys of heatmap.metrics.METRICS
    evaluation.pck_thresholds = (0.05, 0.1, 0.15, 0.2)  # shares of the reference length
    evaluation.pck_references = ("bbox", "torso", "image")  # those that the data set has
    evaluation.csv = False  # write predictions as CSV beside the Parquet
    evaluation.sheet_examples = 6  # validation pictures on the sheet, 0 = no sheets
    evaluation.sheet_every_evals = 10  # at the first evaluation, every n-th and the last

    log = config.log = ConfigDict()
    log.every_steps = 50
    log.tensorboard = True
    log.wandb = False  # needs `pip install -e '.[wandb]'`
    log.project = "heatmap"  # of Weights & Biases
    log.tags = ()

    return config


def parse_argument(argument: str, **defaults: float) -> dict[str, float]:
    """Reads the argument of a config file, the part behind the colon.

    Args:
      argument: such as 'sigma=2,lr=1e-3'.
      **defaults: the names that may be given, with the values of those that are not.

    Returns:
      A number for every name.

    Raises:
      UserError: for an unknown name, or what is no number.
    """
    values = dict(defaults)
    for part in filter(None, argument.split(",")):
        name, _, value = part.partition("=")
        if name not in defaults:
            raise UserError(f"The config's argument {part!r}: {nearest(name, defaults)}")
        try:
            values[name] = float(value)
        except ValueError as error:
            raise UserError(f"The config's argument {part!r} is no number.") from error
    return values
