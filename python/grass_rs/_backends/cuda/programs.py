"""Which program runs which compressor, and what each compressor keeps on devices."""

from __future__ import annotations

import json
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from grass_rs._backends.cuda.device import CudaDevice
from grass_rs._backends.shapes import check_device_outputs

if TYPE_CHECKING:
    from grass_rs import _native
    from grass_rs._backends.cuda.launch import Device
    from grass_rs._backends.cuda.libraries import Library

_PROGRAMS = {
    "mask": ("mask", "MaskProgram"),
    "random_mask": ("mask", "MaskProgram"),
    "sjlt": ("sjlt", "SJLTProgram"),
    "grass": ("sjlt", "GraSSProgram"),
    "gaussian": ("gaussian", "GaussianProgram"),
    "logra": ("logra", "LoGraProgram"),
    "factgrass": ("factgrass", "FactGraSSProgram"),
    "tile": ("tile", "TileProgram"),
}
"""Module and class of each spec's type; imported when the first array of a device comes."""


class Structure:
    """A compressor's program, and the devices with what it keeps there."""

    def __init__(self, native: _native.Compressor) -> None:
        spec = json.loads(native.spec)
        check_device_outputs(spec["type"], native.output_dim)
        module, name = _PROGRAMS[spec["type"]]
        program = getattr(import_module(f"grass_rs._backends.cuda.{module}"), name)
        self.program: Any = program(spec)
        self._devices: dict[Library, Device] = {}

    def device(self, library: Library) -> Device:
        """Return a device as this compressor's program sees it."""
        device = self._devices.get(library)
        # Of two threads that come first at once, both must get the same device.
        return device or self._devices.setdefault(library, CudaDevice(library))


_structures: WeakKeyDictionary[_native.Compressor, Structure] = WeakKeyDictionary()
_lock = Lock()


def structure_of(native: _native.Compressor) -> Structure:
    """Return a compressor's structure, which lives as long as the compressor.

    Who captures calls into a CUDA graph, or has several streams at work, keeps the compressor until
    the work is done, as for any array of these libraries.

    Raises
    ------
    SpecError
        If the compressor has too many outputs for the kernels.

    """
    structure = _structures.get(native)
    if structure is None:
        with _lock:
            structure = _structures.get(native)
            if structure is None:
                structure = _structures[native] = Structure(native)
    return structure
