"""Every family by its name."""

from collections.abc import Callable

from .base import Degradation, compose
from .blur import downsample, gaussian_blur
from .color import decolor
from .heat import blurring_noise, heat
from .mask import fade, mask
from .noise import animorph, bridge, gaussian_noise
from .snow import snow

# All but compose take the images' shape first.
FAMILIES: dict[str, Callable[..., Degradation]] = {
    "animorph": animorph,
    "blurring_noise": blurring_noise,
    "bridge": bridge,
    "compose": compose,
    "decolor": decolor,
    "downsample": downsample,
    "fade": fade,
    "gaussian_blur": gaussian_blur,
    "gaussian_noise": gaussian_noise,
    "heat": heat,
    "mask": mask,
    "snow": snow,
}
