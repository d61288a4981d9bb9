"""Every field of an experiment, with its default; the other files are deltas on this one.

It builds by itself: deblurring scikit-learn's digits. A field of another family's, network's or
data set's own: replace the section, as in config.degradation = {"family": ..., ...}.
"""

import ml_collections

placeholder = ml_collections.config_dict.placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of the parameters, the order of the data, severities, realizations
    config.smoke = False  # shrink everything to under a minute on one CPU
    config.parallel = "pmap"  # over all devices; or jit, by shard_map, or none: one device
    config.shard_optimizer = False  # jit: optimizer and average in pieces, one a device

    config.debug_nans = False  # when updates are not finite: replay one to say where

    config.data = data = ml_collections.ConfigDict()
    # digits, folder, arrays, a data set of TFDS prepared as array_record, or module:function
    data.name = "digits"
    data.directory = placeholder(str)  # the folder, or TFDS's data_dir
    data.image_size = placeholder(int)  # resize and crop to this square
    data.limit = placeholder(int)  # the first so many training images; None: all

    config.degradation = degradation = ml_collections.ConfigDict()
    # A key of diffjax.degradations.families.FAMILIES, or module:function of the images' shape.
    degradation.family = "gaussian_blur"
    # The other fields of this section are its keyword arguments.
    degradation.stds = (0.8,) * 10
    degradation.kernel_size = ml_collections.FieldReference(5)  # or None
    degradation.boundary = "reflect"

    config.model = model = ml_collections.ConfigDict()
    model.network = "unet"  # or dit, or module:function, which gets those fields below it names
    model.width = 32  # features at the finest level; a multiple of 8
    model.multipliers = (1, 2)  # features of each level over width
    model.blocks = 1  # residual blocks a level, each way
    model.attention = ()  # levels with self-attention; 0 is the finest
    model.patch = 1  # pixels a side that become channels: fewer places, more features
    model.detail = 0  # features of a unet's last layer at the full size, past its patches
    model.depth = 6  # blocks of a dit
    model.heads = 4  # of its attention
    model.dtype = "float32"  # of the computation: float32 or bfloat16
    model.remat = False  # recompute inside blocks for the gradient: less memory, more time
    model.class_conditional = False  # give the network the labels
    # Wrap the network with the Wiener restorer; None: wherever one is known and x0 predicted.
    model.precondition = placeholder(bool)
    model.stationary = False  # a coarser Wiener restorer, in a fraction of the memory
    # Error of xt that the Wiener restorer reckons with, beside train.perturbation.
    model.precondition_floor = 1e-3

    config.train = train = ml_collections.ConfigDict()
    train.steps = 1000  # batches seen
    train.batch_size = 64  # over all devices
    train.loss = "l1"  # a key of diffjax.losses.LOSSES
    train.loss_delta = 0.1  # where huber and pseudo_huber turn from square to absolute error
    train.prediction = "x0"  # x0, noise, v, score, flow, edm or previous
    # Of the error of x0_hat, by SNR: a key of diffjax.losses.WEIGHTINGS; None: every severity's
    # own error counts alike.
    train.weighting = placeholder(str)
    train.times = "uniform"  # uniform, stratified, importance, log_normal or logit_normal
    train.levels = placeholder(int)  # severities k/levels; None: the degradation's own steps
    train.learning_rate = 1e-3  # peak; cosine decay to zero
    train.warmup = 100  # steps of linear warm-up
    train.clip_norm = 1.0  # global norm of the gradient
    train.accumulate = 1  # batches averaged into one update
    train.max_skipped = 10  # updates in a row whose loss or gradient is not finite; then it stops
    train.ema_decay = 0.995  # of the averaged parameters, which are the ones sampled with
    train.label_dropout = 0.1  # share of examples without their label
    train.perturbation = 0.0  # q: std of white noise on xt in training; what a run generates from
    train.basis = "pixels"  # in which output and target are compared: pixels or dct

    config.prior = prior = ml_collections.ConfigDict()  # where xT comes from, if from images
    prior.kind = "mixture"  # a Gaussian mixture fitted on D(x0, 1), or bank: those images
    prior.components = 1  # of the mixture
    prior.perturbation = placeholder(float)  # std of the noise added to xT; None: 1.1 q
    prior.images = 6400  # training images used

    config.sample = sample = ml_collections.ConfigDict()
    sample.sampler = "improved"  # a key of diffjax.samplers.SAMPLERS
    sample.steps = placeholder(int)  # S; None: the degradation's own steps, or 50
    sample.grid = "uniform"  # a key of diffjax.samplers.GRIDS
    # The sampler's settings; None: its default.
    sample.settings = settings = ml_collections.ConfigDict()
    settings.eta = placeholder(float)  # ddim
    settings.delta = placeholder(float)  # ihdm: std of the noise that it adds
    settings.epsilon = placeholder(float)  # indi
    settings.churn = placeholder(float)  # euler, heun, and the three below
    settings.s_min = placeholder(float)
    settings.s_max = placeholder(float)
    settings.s_noise = placeholder(float)
    sample.dynamic_threshold = placeholder(float)  # quantile of |x0_hat|; None: none
    sample.guidance_interval = (0.0, 1.0)  # severities at which --guidance acts
    sample.batch_size = 128  # images at a time
    sample.images = placeholder(int)  # held-out images; None: all

    config.run = run = ml_collections.ConfigDict()  # may change when a run goes on
    run.log_every = 25  # steps
    run.evaluate_every = 250  # steps, on a few held-out images
    run.checkpoint_every = 500  # steps; of those looked at, the best is kept
    run.keep = 2  # newest checkpoints, beside the best
    return config
