"""Builds `deepres._C`, the CPU kernels; everything else about the package stands in pyproject.toml.

The extension sees raw pointers only (no PyTorch headers), so one build serves every PyTorch. Without a C++
compiler the install still succeeds: the library then says once that the CPU kernels are missing and runs
the reference (`deepres.backends()` tells why).
"""

import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile("NPY_NUM_BUILD_JOBS", default=0).install()  # a file on each core

sources = ["csrc/bindings.cpp", *sorted(str(p) for p in Path("csrc/cpu").glob("*.cpp"))]
headers = sorted(str(p) for p in Path("csrc").rglob("*.h"))
openmp = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]

extension = Pybind11Extension(
    "deepres._C",
    sources,
    depends=headers,
    include_dirs=["csrc"],
    cxx_std=17,
    # No -march: one binary holds a version for each instruction set and picks at run time.
    # No -ffast-math: NaNs must pass through, and sums keep their order (same input, same bits).
    # maybe-uninitialized: GCC 12 finds it in its own AVX-512 header.
    extra_compile_args=[
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-Wno-maybe-uninitialized",
        *openmp,
    ],
    extra_link_args=["-lomp"] if sys.platform == "darwin" else ["-fopenmp"],
    optional=True,
)

setup(ext_modules=[extension], cmdclass={"build_ext": build_ext})
