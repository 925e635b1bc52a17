"""Build of the Cython kernels; everything else about the package stands in pyproject.toml.

One plain -O3 build serves every CPU: kernels carry their instruction set in their source and are chosen at run
time. -ffast-math is never used, it would change the bits, and neither is contraction to fused operations that are
not written as such. With OLLAMA_ZMQ_DEBUG_KERNELS=1 every index and every integer is checked, and a wrong one ends the
program: that is ``tox run -e debug``. With OLLAMA_ZMQ_SANITIZE=1 they are built for AddressSanitizer and
UndefinedBehaviorSanitizer: that is ``tox run -e asan``. Such modules load only where libasan is preloaded.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import chain
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

INCLUDE = "kernels/cpu/include"
CHECKED = os.environ.get("OLLAMA_ZMQ_DEBUG_KERNELS") == "1"
# CPython's own flags ask for line numbers: half of the compiler's time, and nine tenths of the modules' bytes.
COMPILE_ARGS = ["-O3", "-g0", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread"]
CHECK_INDICES = ["-DOLLAMA_CHECK_INDICES"]  # check.h
CHECKS = [
    *CHECK_INDICES,
    "-fsanitize=bounds,object-size,shift,signed-integer-overflow,null",
    "-fsanitize-undefined-trap-on-error",
]
SANITIZED = os.environ.get("OLLAMA_ZMQ_SANITIZE") == "1"
# Checks of addresses are calls, which compile in a fifth of the time; CPython's -fwrapv would hide overflows.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=null,object-size", "-fno-sanitize-recover=all"]
SANITIZED_ARGS = [
    *SANITIZERS,
    *CHECK_INDICES,
    "-O1",
    "-g1",
    "-fno-wrapv",
    "--param=asan-instrumentation-with-call-threshold=0",
]
# Each kind of build has a folder of its own: setuptools looks at dates, not at flags.
BUILD = "build/sanitized" if SANITIZED else "build/checked" if CHECKED else "build/release"
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKED,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": CHECKED,
}


class ParallelBuild(build_ext):
    """Compiles the extension modules side by side, and the sources of each: 56 of the 80 s that one core takes."""

    def finalize_options(self) -> None:
        self.parallel = self.parallel or True
        super().finalize_options()

    def build_extensions(self) -> None:
        compile_in_turn = self.compiler.compile

        def compile_side_by_side(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                objects = threads.map(lambda source: compile_in_turn([source], **options), sources)
                return list(chain.from_iterable(objects))

        self.compiler.compile = compile_side_by_side
        super().build_extensions()


def extension(name: str, *sources: str, headers: list[str]) -> Extension:
    """The extension module of ``kernels/cpu/NAME.pyx``, built again when one of its *headers* changes."""
    return Extension(
        f"ollama_zmq.kernels.cpu.{name}",
        [f"kernels/cpu/{name}.pyx", *sources],
        include_dirs=[INCLUDE],
        depends=headers,
        extra_compile_args=COMPILE_ARGS + (CHECKS if CHECKED else []) + (SANITIZED_ARGS if SANITIZED else []),
        extra_link_args=["-pthread", *(SANITIZERS if SANITIZED else [])],
    )


HEADERS = sorted(glob(f"{INCLUDE}/**/*.h", recursive=True))
GLUE = (f"{INCLUDE}/packing/", f"{INCLUDE}/runtime/")  # around the kernels: no instruction set is built of them

setup(
    packages=[
        *find_packages(include=["ollama_zmq*"], exclude=["ollama_zmq.kernels*"]),
        "ollama_zmq.kernels",
        "ollama_zmq.kernels.cpu",
    ],
    options={"build": {"build_base": BUILD}},
    cmdclass={"build_ext": ParallelBuild},
    ext_modules=cythonize(
        [
            extension(
                "simd",
                *sorted(glob("kernels/cpu/isa_*.c")),
                headers=[name for name in HEADERS if not name.startswith(GLUE)],
            ),
            extension("program", headers=HEADERS),
            extension("pool", headers=HEADERS),
            extension("lookup", headers=HEADERS),
            extension("memory", headers=[f"{INCLUDE}/runtime/arena.h"]),
            extension("logits", headers=[f"{INCLUDE}/kernels.h", f"{INCLUDE}/rows/top.h"]),
        ],
        build_dir=f"{BUILD}/cython",
        compiler_directives=DIRECTIVES,
        include_path=[INCLUDE],
        nthreads=os.cpu_count(),
    ),
)
