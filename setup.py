"""Build of the one extension module, fedcli.core._core; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

RELEASE_FLAGS, DEBUG_FLAGS = "-O3 -DNDEBUG", "-O1 -g -UNDEBUG"
# Contraction into FMA stays allowed, hence gnu11; NaN checks must work, hence no -ffast-math.
C_FLAGS = "-std=gnu11 -fno-math-errno -fno-trapping-math -fvisibility=hidden -Wno-psabi"
# What Cython writes only checks and calls: compiled quickly, it runs as fast.
GLUE_FLAGS = "-O1 -g0 -Wno-sign-compare"
# Per folder. Synthetic data must not depend on what the compiler makes of a * b + c.
FOLDER_FLAGS = {"random": ["-ffp-contract=off"]}
# Per instruction set, flags to try in turn: GCC < 11 and Clang < 12 lack the levels' names.
ISA_FLAGS = {
    "avx2": ["-march=x86-64-v3", "-mavx2 -mfma -mbmi -mbmi2 -mf16c"],
    "avx512": [
        "-march=x86-64-v4 -mprefer-vector-width=512",
        "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512",
    ],
}
X86_64_PROGRAM = "#ifndef __x86_64__\n#error\n#endif\nint main(void) { return 0; }\n"

OPENMP_PROGRAM = """#include <omp.h>
int main(void) {
    int total = 0;
#pragma omp parallel reduction(+ : total)
    total += omp_get_num_threads();
    return total < 1;
}
"""


class BuildCore(build_ext):
    """Compiles csrc/ file by file, each with its own flags, and links it into the extension."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the core, always anew: files do not tell with what settings they were made."""
        from Cython.Build import cythonize

        debug = os.environ.get("FEDCLI_DEBUG") == "1"
        compile_openmp, link_openmp = self.probe_openmp()
        isas = {name: flags for name in ISA_FLAGS if (flags := self.probe_isa(name)) is not None}
        have = [f"-DFED_HAVE_{name.upper()}" for name in isas]
        level = DEBUG_FLAGS if debug else RELEASE_FLAGS
        flags = [*C_FLAGS.split(), *level.split(), *compile_openmp, *have]

        jobs = [
            (path, [*flags, *FOLDER_FLAGS.get(path.parent.name, []), *isas.get(path.stem, [])])
            for path in sorted(Path("csrc").rglob("*.c"))
            if path.stem in isas or path.stem not in ISA_FLAGS
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects = list(pool.map(self.compile_file, jobs))
        made = cythonize(
            [Extension(ext.name, ext.sources)],
            build_dir=self.build_temp,
            compiler_directives={"language_level": 3, "boundscheck": debug, "wraparound": False},
            force=True,
            quiet=True,
        )
        ext.sources = made[0].sources
        ext.extra_compile_args = flags if debug else [*flags, *GLUE_FLAGS.split()]
        ext.extra_link_args = link_openmp
        self.force = True
        super().build_extension(ext)

    def compile_file(self, job: tuple[Path, list[str]]) -> str:
        """Compiles one C file with its flags; returns its object file."""
        path, flags = job
        flags = ["-Icsrc", *flags]
        return self.compiler.compile([str(path)], self.build_temp, extra_postargs=flags)[0]

    def probe_isa(self, name: str) -> list[str] | None:
        """Returns flags with which this compiler builds an instruction set, None if none do."""
        choices = map(str.split, ISA_FLAGS[name])
        return next((flags for flags in choices if self.try_program(X86_64_PROGRAM, flags)), None)

    def probe_openmp(self) -> tuple[list[str], list[str]]:
        """Returns compile and link flags with which an OpenMP program runs, empty if none do."""
        if os.environ.get("FEDCLI_NO_OPENMP") == "1":
            return [], []
        for prefix in ("", "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"):
            compile_flags, link_flags = ["-fopenmp"], ["-fopenmp"]
            if prefix:  # Apple's clang with Homebrew's libomp
                compile_flags = ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"]
                link_flags = [f"-L{prefix}/lib", "-lomp"]
            if self.try_program(OPENMP_PROGRAM, [*compile_flags, *link_flags], run=True):
                return compile_flags, link_flags
        print("fedcli: no working OpenMP found, building without threads", file=sys.stderr)
        return [], []

    def try_program(self, program: str, flags: list[str], run: bool = False) -> bool:
        """Tells whether a program compiles and links with `flags` and, if asked, runs."""
        with tempfile.TemporaryDirectory() as tmp:
            source, binary = Path(tmp, "probe.c"), Path(tmp, "probe")
            source.write_text(program)
            build = [*self.compiler.compiler, str(source), *flags, "-o", str(binary)]
            commands = [build, [str(binary)]] if run else [build]
            return all(subprocess.run(c, capture_output=True).returncode == 0 for c in commands)


if __name__ == "__main__":
    sources = sorted(str(path) for path in Path("csrc").rglob("[!.]*.*"))
    parts = ["setup.py", "fedcli/core/_fed.pxd", *sources]
    core = Extension(
        "fedcli.core._core", ["fedcli/core/_core.pyx"], depends=parts, include_dirs=["csrc"]
    )
    setup(ext_modules=[core], cmdclass={"build_ext": BuildCore})
