"""Starts engines of a bundle on this machine, to measure them."""

from __future__ import annotations

from edgeres.device.libraries import available
from edgeres.device.targets import Flavour
from edgeres.errors import EnvironmentError_
from edgeres.made import Made
from edgeres.records import EngineRecord
from edgeres.runtime.choose import cache_folder, start_engine
from edgeres.runtime.engine import TensorRTRunner
from edgeres.runtime.memory import Device, default_device


def device_for(runtime: Flavour) -> Device:
    """This machine's GPU.

    Raises:
        EnvironmentError_: engines of this runtime cannot run here; the text says why.
    """
    here = available(runtime)
    if not here.can_run:
        raise EnvironmentError_(here.reason)
    return default_device()


def start(made: Made, record: EngineRecord, device: Device) -> TensorRTRunner:
    """The runner of an engine of the bundle.

    Raises:
        EnvironmentError_: it does not start on this device.
        BundleError: its file was changed.
    """
    file, host_code = str(record.file), made.permit.allows_host_code(record)
    return start_engine(made.folder / file, record, made.files[file], device, cache_folder(), host_code=host_code)


def why_not_started(made: Made, record: EngineRecord, device: Device) -> str:
    """Why an engine of the bundle does not start on this device; "" where it does."""
    try:
        start(made, record, device).close()
    except EnvironmentError_ as error:
        return error.what
    return ""
