"""Build of the Cython kernels; everything else about the package stands in pyproject.toml.

One plain -O3 build serves every CPU: kernels carry their instruction set as a function attribute and are
chosen at run time. -ffast-math is never used, it would change the bits (see docs/architecture.md).
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

COMPILE_ARGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}


def extension(path: str) -> Extension:
    """The extension module of one ``kernels/cpu/NAME.pyx``."""
    name = os.path.splitext(os.path.basename(path))[0]
    return Extension(
        f"ollama_zmq.kernels.cpu.{name}",
        [path],
        include_dirs=["kernels/cpu/include"],
        depends=sorted(glob("kernels/cpu/include/*.h")),
        extra_compile_args=COMPILE_ARGS,
        extra_link_args=["-pthread"],
    )


setup(
    packages=[*find_packages(include=["ollama_zmq*"]), "ollama_zmq.kernels", "ollama_zmq.kernels.cpu"],
    ext_modules=cythonize(
        [extension(path) for path in sorted(glob("kernels/cpu/*.pyx"))],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
        nthreads=0,
    ),
)
