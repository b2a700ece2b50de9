"""The command line in the process of the tests: as a user types it, without the seconds that a new process takes."""

import contextlib
import importlib.util
import io
import logging as standard_logging
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags, logging
from command import ROOT
from ml_collections import config_flags

import cacenet_jax.train  # noqa: F401, so that grain has defined its flags

MAIN = "cacenet_jax.main"
DEFINITIONS = {
    flags: ("DEFINE_string", "DEFINE_bool", "DEFINE_integer", "DEFINE_float"),
    config_flags: ("DEFINE_config_file",),
}


def run_main(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run main.py in a folder with flags of its own; signals, logging and the compilation cache stay as they are."""
    told, warned = io.StringIO(), io.StringIO()
    values = flags.FlagValues()
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in defined if module != MAIN else ():
            values[flag.name] = flag
    handler, absl, root = logging.get_absl_handler(), logging.get_absl_logger(), standard_logging.getLogger()
    handlers, filters, verbosity, formatter = (
        root.handlers[:],
        absl.filters[:],
        logging.get_verbosity(),
        handler.formatter,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(flags, "FLAGS", values)
        for module, names in DEFINITIONS.items():
            for name in names:
                define = getattr(module, name)
                patch.setattr(module, name, lambda *a, define=define, **k: define(*a, **k, flag_values=values))
        patch.setattr("cacenet_jax.run.stopping.listen", lambda: None)
        patch.setattr("cacenet_jax.run.compilation.enable_cache", lambda: None)
        patch.setattr(handler.python_handler, "stream", warned)
        patch.setattr(sys, "argv", ["cacenet", *words])
        spec = importlib.util.spec_from_file_location(MAIN, ROOT / "cacenet_jax/main.py")
        main = importlib.util.module_from_spec(spec)
        code = 0
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(warned):
                spec.loader.exec_module(main)
                main.main()
        except SystemExit as end:
            code = end.code
        finally:
            root.handlers[:], absl.filters[:] = handlers, filters
            logging.set_verbosity(verbosity)
            handler.setFormatter(formatter)
    return subprocess.CompletedProcess(words, code, told.getvalue(), warned.getvalue())
