"""The one place that holds Numba's options, the kernel cache's place, and raw memory access.

Kernels read mapped segments through addresses: one int64 array describes all sources of a query, so that
one call costs one argument's unpacking (measured: 127 ns against 351 ns for six arrays). The caller keeps
the arrays behind the addresses alive for the length of the call.

With ``NUMBA_DISABLE_JIT=1`` everything here runs as plain Python (raw access through ctypes).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config as _numba_config
from numba.extending import intrinsic

from omendb.jit.cache import KernelCache, choose_directory
from omendb.jit.processor import host_features, leave_unreachable_level

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")

_config: Any = _numba_config  # its attributes are made when it is imported
JIT_DISABLED = bool(_config.DISABLE_JIT)


def source_hash() -> str:
    """Return a hash of the kernels' sources and of what compiles them.

    Numba's cache does not notice a change in a callee of another module (a stale, wrong result was
    reproduced), so the hash names the cache directory.
    """
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


PROCESSOR_NOTE = None if JIT_DISABLED else leave_unreachable_level(_config, host_features())
"""Why the kernels that were compiled ahead are not used; None when they are."""


def cache_directory() -> Path:
    """Return where compiled kernels are kept: in ``NUMBA_CACHE_DIR``, else in the user's cache directory."""
    checks = "-boundscheck" if _config.BOUNDSCHECK else ""
    # Kernels of an image are in a directory that nobody writes to; what replaces them must be kept elsewhere.
    return choose_directory(
        f"kernels-{source_hash()}{checks}", os.environ, read_only_will_do=PROCESSOR_NOTE is None
    )


if not JIT_DISABLED:
    _config.CACHE_DIR = str(cache_directory())


def kernel(function: Function) -> Function:
    """Compile a kernel: cached on disk, GIL released, no fastmath (NaN must stay NaN)."""
    if JIT_DISABLED:
        return function
    return cast("Function", _cached(numba.njit(nogil=True, error_model="numpy")(function)))


def inline_kernel(function: Function) -> Function:
    """Compile a small kernel that LLVM inlines into its callers; as `kernel` otherwise."""
    if JIT_DISABLED:
        return function
    decorator = numba.njit(nogil=True, error_model="numpy", forceinline=True)
    return cast("Function", _cached(decorator(function)))


def _cached(dispatcher: Any) -> Any:  # noqa: ANN401
    """Give a kernel a cache of ours: what ``cache=True`` does with Numba's own."""
    dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


def _load(ctype: Any, width: int, llvm: Any, result: Any) -> Any:  # noqa: ANN401
    """Make a raw load ``load(address, index)`` of one element type, aligned or not."""
    if JIT_DISABLED:

        def load_plain(address: int, index: int) -> Any:  # noqa: ANN401
            return ctype.from_address(int(address) + width * int(index)).value

        return load_plain

    def load(typingctx: Any, address: Any, index: Any) -> Any:  # noqa: ANN401
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
            pointer = builder.inttoptr(args[0], llvm.as_pointer())
            # align=1: columns inside a Parquet file start at any byte; on x86 this costs nothing.
            loaded = builder.load(builder.gep(pointer, [args[1]]), align=1)
            if llvm == ir.IntType(8):
                return builder.zext(loaded, ir.IntType(64))
            if llvm == ir.IntType(32):
                return builder.sext(loaded, ir.IntType(64))
            return loaded

        return result(types.int64, types.int64), codegen

    return intrinsic(load)


load_i64 = _load(ctypes.c_int64, 8, ir.IntType(64), types.int64)
"""``load_i64(address, index)``: the int64 at ``address + 8 * index``."""
load_i32 = _load(ctypes.c_int32, 4, ir.IntType(32), types.int64)
"""``load_i32(address, index)``: the int32 at ``address + 4 * index``, as int64."""
load_u8 = _load(ctypes.c_uint8, 1, ir.IntType(8), types.int64)
"""``load_u8(address, index)``: the byte at ``address + index``, as int64."""
load_f64 = _load(ctypes.c_double, 8, ir.DoubleType(), types.float64)
"""``load_f64(address, index)``: the float64 at ``address + 8 * index``."""


if JIT_DISABLED:

    def integers_at(address: int, count: int) -> Any:  # noqa: ANN401
        """Return the int64[count] at an address, without owning it."""
        return np.ctypeslib.as_array((ctypes.c_int64 * int(count)).from_address(int(address)))

    def floats_at(address: int, count: int) -> Any:  # noqa: ANN401
        """Return the float64[count] at an address, without owning it."""
        return np.ctypeslib.as_array((ctypes.c_double * int(count)).from_address(int(address)))

else:

    def _pointer(typingctx: Any, address: Any) -> Any:  # noqa: ANN401
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
            return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

        return types.voidptr(types.int64), codegen

    _pointer_of: Any = intrinsic(_pointer)
    _view: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]

    @inline_kernel
    def integers_at(address: int, count: int) -> Any:  # noqa: ANN401
        """Return the int64[count] at an address, without owning it."""
        return _view(_pointer_of(address), (count,), np.int64)

    @inline_kernel
    def floats_at(address: int, count: int) -> Any:  # noqa: ANN401
        """Return the float64[count] at an address, without owning it."""
        return _view(_pointer_of(address), (count,), np.float64)


def _prefetch(typingctx: Any, address: Any) -> Any:  # noqa: ANN401
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        byte_pointer = ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            (byte_pointer,),
            ir.FunctionType(ir.VoidType(), [byte_pointer] + [ir.IntType(32)] * 3),
        )
        read, keep, data = (ir.Constant(ir.IntType(32), n) for n in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], byte_pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _prefetch_nothing(_address: int) -> None:
    """Stand in for `prefetch` in plain Python."""


def _multiply_fold(typingctx: Any, left: Any, right: Any) -> Any:  # noqa: ANN401
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        low = builder.trunc(product, ir.IntType(64))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))
        return builder.xor(low, high)

    return types.int64(types.int64, types.int64), codegen


def _multiply_fold_plain(left: int, right: int) -> int:
    """Stand in for `multiply_fold` in plain Python; takes integers of any size, as two's complement."""
    product = (int(left) & _UINT64_MAX) * (int(right) & _UINT64_MAX)
    return (product ^ (product >> 64)) & _UINT64_MAX


_UINT64_MAX = 2**64 - 1

multiply_fold = cast(
    "Callable[[int, int], int]", _multiply_fold_plain if JIT_DISABLED else intrinsic(_multiply_fold)
)
"""``multiply_fold(a, b)``: the two halves of the unsigned 128-bit product, combined by exclusive or."""

prefetch = cast("Callable[[int], None]", _prefetch_nothing if JIT_DISABLED else intrinsic(_prefetch))
"""``prefetch(address)``: ask for a cache line that will be read soon; never faults."""
