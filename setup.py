"""Builds bert_fast._C. The Python side of the package is described in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bert_fast", "bert_fast.*"]), "bert_fast.kernels"],
    package_dir={"bert_fast.kernels": "kernels"},
    package_data={"bert_fast": ["py.typed"]},
    ext_modules=[Pybind11Extension("bert_fast._C", ["csrc/module.cpp"], cxx_std=17)],
)
