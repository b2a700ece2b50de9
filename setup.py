"""The list of packages; everything else is in pyproject.toml, which can name a folder elsewhere only in a list by hand."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cacenet_jax", "cacenet_jax.*"]), "cacenet_jax.configs"],
    package_dir={"cacenet_jax.configs": "configs"},
)
