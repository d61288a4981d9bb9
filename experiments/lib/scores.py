"""How near restored images come to the clean ones: RMSE, PSNR and SSIM of images in [0, 1]."""

import pickle
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from diffjax import metrics, parallel


@jax.jit
def _score(images_BHWC, clean_BHWC):
    images_BHWC, clean_BHWC = metrics.to_unit(images_BHWC), metrics.to_unit(clean_BHWC)
    return {
        name: jax.vmap(getattr(metrics, name))(images_BHWC, clean_BHWC)
        for name in ("mse", "psnr", "ssim")
    }


def tabulate(
    batches: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]], *, shared: bool = False
) -> dict[str, dict[str, float]]:
    """{method: {"rmse", "psnr", "ssim", "exact"}}: RMSE over all pixels, the others averaged.

    The PSNR of an image that comes out exactly is infinite: "exact" counts those, and the mean is
    over the others; None where there are none.

    Args:
      batches: (clean, {method: restored}), each [B, H, W, C] in [-1, 1]; none is larger than
        the first.
      shared: they are this host's share of them, and what is told is of all; all must call it.
    """
    collected: dict[str, list] = {}
    size = 0
    for clean, restored in batches:
        size = size or len(clean)
        for name, images in restored.items():
            # A short last batch is filled up, so that there is one shape and one compilation.
            whole = (np.resize(x, (size, *x.shape[1:])) for x in (images, clean))
            found = jax.device_get(_score(*whole))
            rows = {score: values[: len(clean)] for score, values in found.items()}
            collected.setdefault(name, []).append(rows)
    if shared:
        shares = map(pickle.loads, parallel.bytes_from_all_hosts(pickle.dumps(collected)))
        collected = {}
        for share in shares:
            for name, rows in share.items():
                collected.setdefault(name, []).extend(rows)
    return {name: _summary(rows) for name, rows in collected.items()}


def _summary(rows):
    mse, psnr, ssim = (
        np.concatenate([one[score] for one in rows]) for score in ("mse", "psnr", "ssim")
    )
    return {
        "rmse": float(np.sqrt(mse.mean())),
        "psnr": float(psnr[np.isfinite(psnr)].mean()) if np.isfinite(psnr).any() else None,
        "exact": int(np.isposinf(psnr).sum()),
        "ssim": float(ssim.mean()),
    }
