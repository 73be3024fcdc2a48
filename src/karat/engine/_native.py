"""The CPU kernels: compiled on first use where a C++ compiler is present, and kept in the user's cache.

Compiled here and not with the package, because only here it is known which instructions this CPU has.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
SOURCES = (HERE / "_attention.cpp", HERE / "_fused.cpp", HERE / "_linear.cpp")
READ = (*SOURCES, HERE / "_common.h")
FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-std=c++17", "-fopenmp", "-fPIC"),
)
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Call(ctypes.Structure):
    """The kernel's `Call`, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "block_rows", "limits")),
        *((name, ctypes.c_void_p) for name in ("tiles", "paths", "sinks")),
        *((f"{t}_{axis}", ctypes.c_int64) for t in ("q", "k", "v", "out") for axis in ("row", "head")),
        *((name, ctypes.c_int32) for name in ("heads", "kv_heads", "size", "value_size", "blocks", "count", "window")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )


@functools.cache
def openmp() -> Any:
    """Torch's own OpenMP, so that its threads and the kernels' are the same ones.

    Raises:
        OSError: there is none.
    """
    found = [*map(str, Path(torch.__file__).parent.glob("lib/libgomp*")), "libgomp.so.1"]
    return ctypes.CDLL(found[0], mode=ctypes.RTLD_GLOBAL)


def release_threads() -> None:
    """End the threads that the calling one has computed with; its next computation makes new ones, in 0.1 ms.

    To be called where a thread has computed for another, which goes on. libgomp counts the threads of all: as soon as
    there are more than cores, each sleeps between two loops instead of waiting awake, and to wake them for every loop
    of a forward takes an eighth of model S's time and half of a lone request's.
    """
    with contextlib.suppress(OSError, AttributeError):  # another OpenMP, or one older than version 5.0
        openmp().omp_pause_resource_all(1)


@functools.cache
def kernel() -> Any:
    """The compiled kernels, or None where they cannot be had; KARAT_NATIVE=0 says not to."""
    if os.environ.get("KARAT_NATIVE") == "0" or platform.system() != "Linux":
        return None
    try:
        openmp()
        return ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: who runs this has no home
        return None


def _compiled() -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        raise OSError("there is no C++ compiler")
    this = "".join(FLAGS) + compiler + _cpu() + "".join(path.read_text(encoding="utf-8") for path in READ)
    name = f"kernels-{hashlib.sha256(this.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karat"
    target = folder / name
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            # Linked without its OpenMP: the symbols are those of the library that is loaded already.
            objects = [f"{path.stem}.o" for path in SOURCES]
            for parts in ([*FLAGS, "-c", *map(str, SOURCES)], ["-shared", "-o", name, *objects]):
                subprocess.run([compiler, *parts], check=True, capture_output=True, timeout=120, cwd=aside)
            Path(aside, name).replace(target)
    return target


def _cpu() -> str:
    """What `-march=native` depends on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def call_kernel(name: str, what: ctypes.Structure) -> None:
    """Call one of the kernels.

    Raises:
        MemoryError: there is too little for what it keeps aside.
    """
    if not getattr(kernel(), name)(ctypes.byref(what)):
        raise MemoryError(f"{name} found no memory to work in")


def takes(q: Tensor, *others: Tensor) -> bool:
    """Whether the kernel can run on these."""
    tensors = (q, *others)
    fits = all(t.device.type == "cpu" and t.dtype == q.dtype and t.stride(-1) == 1 for t in tensors)
    return fits and q.dtype in NAMES and kernel() is not None


def attention(
    q_THD: Tensor, k_RHD: Tensor, v_RHD: Tensor, out_THD: Tensor, where: dict[str, Tensor], how: dict[str, Any]
) -> None:
    """Write what each query row reads into `out_THD`.

    `where` holds the int32 tensors `block_rows`, `limits`, `tiles` and `paths` of the kernel's `Call`;
    `how` holds `scale`, `softcap`, `window` and `sinks`.
    """
    blocks, (kv_heads, size), value_size = len(where["block_rows"]), k_RHD.shape[1:], v_RHD.shape[-1]
    tensors = {"q": q_THD, "k": k_RHD, "v": v_RHD, "out": out_THD}
    strides = {f"{n}_{axis}": t.stride(i) for n, t in tensors.items() for i, axis in enumerate(("row", "head"))}
    pointers = {n: t.data_ptr() for n, t in (tensors | where).items()}
    sinks = how["sinks"]
    sinks = None if sinks is None else sinks.detach().float().contiguous()
    call = Call(
        **pointers,
        **strides,
        sinks=None if sinks is None else sinks.data_ptr(),
        heads=q_THD.shape[1],
        kv_heads=kv_heads,
        size=size,
        value_size=value_size,
        blocks=blocks,
        count=len(where["tiles"]),
        window=how["window"] or 0,
        threads=torch.get_num_threads(),
        scale=how["scale"],
        softcap=how["softcap"] or 0.0,
    )
    call_kernel(f"karat_attention_{NAMES[q_THD.dtype]}", call)
