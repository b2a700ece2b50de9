"""The calibration that lies with a network: WORKDIR/calibration.json, or the field `calibration` of an export's manifest."""

from pathlib import Path

from cacenet_jax.data import json_files
from cacenet_jax.errors import UserError
from cacenet_jax.export.folder import MANIFEST, read_manifest, write_manifest
from cacenet_jax.export.inference import Inference
from cacenet_jax.retrieval.calibration import Calibration
from cacenet_jax.run.workdir import write_json

FILE = "calibration.json"
_AGAIN = "run --mode=calibrate again, or remove it"


def read_calibration(place: str, network: Inference) -> Calibration | None:
    """Read the calibration of a network, or return None if there is none.

    Args:
        place: workdir, export folder or published checkpoint that the network was loaded from.
        network: the network.

    Raises:
        UserError: the calibration is damaged, or is one of other weights or settings.
    """
    folder = Path(place).expanduser()
    if network.net is not None or not (folder / MANIFEST).is_file():
        return of_workdir(folder, network.fingerprint, network.mix, network.flip) if folder.is_dir() else None
    values, where = read_manifest(folder).get("calibration"), f"{folder / MANIFEST}, field calibration"
    if values is None:
        return None
    calibration = Calibration.from_dict(values, where)
    _check(calibration, where, network.fingerprint, network.mix, network.flip)
    return calibration


def of_workdir(workdir: Path, network: str, mix: float, flip: bool) -> Calibration | None:
    """Read the calibration in a workdir, or return None if there is none.

    Args:
        workdir: folder of the run.
        network: fingerprint of the weights.
        mix: weight of the pair distance.
        flip: True if the features of an image and its mirror image are averaged.

    Raises:
        UserError: the calibration is damaged, or is one of other weights or settings.
    """
    path = workdir / FILE
    values = json_files.read(path, _AGAIN)
    if values is None:
        return None
    calibration = Calibration.from_dict(values, str(path))
    _check(calibration, str(path), network, mix, flip)
    return calibration


def write_calibration(place: str, calibration: Calibration) -> Path:
    """Store a calibration with its network and return the file.

    Args:
        place: workdir or export folder.
        calibration: calibration of the network there.

    Raises:
        UserError: `place` is a published checkpoint, which has no folder of its own.
    """
    check_place(place)
    folder = Path(place).expanduser()
    if (folder / "config.json").is_file():
        write_json(folder / FILE, calibration.to_dict())
        return folder / FILE
    manifest = read_manifest(folder)
    write_manifest(folder / MANIFEST, manifest | {"calibration": calibration.to_dict()})
    return folder / MANIFEST


def check_place(place: str) -> None:
    """Raise UserError if a calibration cannot be stored with the network at a place."""
    if not Path(place).expanduser().is_dir():
        raise UserError(
            f"--workdir={place}: found no folder, expected one for the calibration, a workdir or an export; import a "
            "published checkpoint with --mode=import first"
        )


def _check(calibration: Calibration, where: str, network: str, mix: float, flip: bool) -> None:
    """Raise UserError if a calibration belongs to another network or to other settings."""
    if calibration.network != network:
        raise UserError(
            f"{where}: found a calibration of other weights ({calibration.network[:16]}), expected one of these "
            f"({network[:16]}); {_AGAIN}"
        )
    if "mixed" in calibration.curves and calibration.mix != mix:
        raise UserError(
            f"{where}: found a calibration for the weight {calibration.mix:g} of the pair distance, expected one for "
            f"config.eval.mix={mix:g}; {_AGAIN}"
        )
    if calibration.flip != flip:
        raise UserError(
            f"{where}: found a calibration for config.eval.flip={calibration.flip}, expected one for {flip}; {_AGAIN}"
        )
