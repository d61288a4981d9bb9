"""Every field of an experiment, with its default; the other files are deltas on this one."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of the parameters, the order of the data, severities, realisations
    config.smoke = False  # shrink everything to under a minute on one CPU

    config.data = data = ml_collections.ConfigDict()
    data.name = "digits"  # digits, folder, or a data set of TFDS prepared as array_record
    data.directory = ml_collections.config_dict.placeholder(str)  # the folder, or TFDS's data_dir
    data.image_size = ml_collections.config_dict.placeholder(int)  # resize and crop to this square

    config.degradation = degradation = ml_collections.ConfigDict()
    degradation.family = "gaussian_blur"  # a constructor of diffjax.cold or diffjax.hot
    # The other fields of this section are the constructor's keyword arguments.

    config.model = model = ml_collections.ConfigDict()
    model.width = 32  # features at the finest level; a multiple of 8
    model.multipliers = (1, 2)  # features of each level over width
    model.blocks = 1  # residual blocks a level, each way
    model.attention = ()  # levels with self-attention; 0 is the finest
    model.dtype = "float32"  # of the computation: float32 or bfloat16
    model.class_conditional = False  # give the network the labels
    # Wrap the network with the best linear restorer; None: wherever one is known and x0 predicted.
    model.precondition = ml_collections.config_dict.placeholder(bool)
    model.precondition_floor = 1e-3  # error of xt that the linear restorer reckons with

    config.train = train = ml_collections.ConfigDict()
    train.steps = 1000  # batches seen
    train.batch_size = 64  # over all devices
    train.loss = "l1"  # l1, l2, huber or pseudo_huber
    train.loss_delta = 0.1  # where huber and pseudo_huber turn from square to absolute error
    train.prediction = "x0"  # x0, noise, v, score, flow, edm or previous
    # Of the error of x0_hat, by SNR: a name of diffjax.losses.WEIGHTINGS; None: every severity's
    # own error counts alike.
    train.weighting = ml_collections.config_dict.placeholder(str)
    train.times = "uniform"  # uniform, stratified, importance, log_normal or logit_normal
    train.levels = ml_collections.config_dict.placeholder(int)  # severities k/levels; None: all
    train.learning_rate = 1e-3  # peak; cosine decay to zero
    train.warmup = 100  # steps of linear warm-up
    train.clip_norm = 1.0  # global norm of the gradient
    train.accumulate = 1  # batches averaged into one update
    train.ema_decay = 0.995  # of the averaged parameters, which are the ones sampled with

    train.label_dropout = 0.1  # share of examples without their label

    config.prior = prior = ml_collections.ConfigDict()  # where xT comes from, if from images
    prior.kind = "mixture"  # a Gaussian mixture fitted on D(x0, 1), or bank: those images
    prior.components = 1  # of the mixture
    prior.perturbation = 0.002  # std of the noise added to xT, in units of [-1, 1]
    prior.images = 6400  # training images used

    config.sample = sample = ml_collections.ConfigDict()
    sample.sampler = "cold"  # one of experiments.common.SAMPLERS
    sample.steps = 20  # S
    sample.grid = "uniform"  # 1, 1 - 1/S, ..., 0; or trailing or karras
    sample.delta = 0.025  # std of the noise that the sampler ihdm adds
    sample.batch_size = 128  # images at a time
    sample.images = ml_collections.config_dict.placeholder(int)  # held-out images; None: all

    config.run = run = ml_collections.ConfigDict()  # may change when a run goes on
    run.log_every = 25  # steps
    run.checkpoint_every = 500  # steps
    run.keep = 2  # checkpoints
    return config
