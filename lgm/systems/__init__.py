"""Released systems, one room each; a record says what is special about it, and whoever needs to know asks that."""

from __future__ import annotations

from typing import Any

from lgm.models import family_of
from lgm.systems.dit import DIT
from lgm.systems.flux import FLUX
from lgm.systems.flux2 import FLUX2, FLUX2_KLEIN
from lgm.systems.qwen_image import QWEN_IMAGE
from lgm.systems.release import Released
from lgm.systems.sd3 import SD3
from lgm.systems.sd15 import SD15
from lgm.systems.sdxl import SDXL
from lgm.systems.z_image import Z_IMAGE

_ALL = (SD15, SDXL, SD3, FLUX, DIT, Z_IMAGE, QWEN_IMAGE, FLUX2, FLUX2_KLEIN)
SYSTEMS: dict[str, Released] = {system.name: system for system in _ALL}


def released(config: Any) -> Released | None:
    """The system that a denoiser's configuration may belong to; None where there is none."""
    name = family_of(config).name
    return next((system for system in SYSTEMS.values() if name == system.family and system.member(config)), None)
