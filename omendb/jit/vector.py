"""Reductions with vector instructions, in LLVM's own language.

Numba switches off the pass of LLVM that would put eight accumulators into vector registers (the code of
eight written-out lanes holds ``vaddsd``, one value at a time), and leave to reorder sums (``fastmath``) would
change answers, and lose NaN. So the vectors are written here: lane ``j`` of a vector does, operation by
operation, what lane ``j`` of the scalar kernel in `omendb.jit.window` does, and the lanes are joined in the
same order. The answers are the same, bit for bit.

With ``NUMBA_DISABLE_JIT=1`` the same is done in plain Python.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from omendb.jit._compile import JIT_DISABLED

if TYPE_CHECKING:
    from collections.abc import Callable

REDUCE_LANES = 8
SQUARE_LANES = 4

_DOUBLE = ir.DoubleType()
_INT64 = ir.IntType(64)


def _constant(value: float, lanes: int) -> Any:  # noqa: ANN401
    return ir.Constant(ir.VectorType(_DOUBLE, lanes), [ir.Constant(_DOUBLE, value)] * lanes)


def _loop(builder: Any, lanes: int, values: Any, row: Any, stop: Any) -> Any:  # noqa: ANN401
    """Open the loop over whole vectors; a context that gives the vector at each place."""
    vector = ir.VectorType(_DOUBLE, lanes)

    def load(place: Any) -> Any:  # noqa: ANN401
        pointer = builder.gep(builder.inttoptr(values, _DOUBLE.as_pointer()), [place])
        # align=1: columns inside a Parquet file start at any byte.
        return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)

    step = ir.Constant(_INT64, lanes)
    end = builder.sub(stop, ir.Constant(_INT64, lanes - 1))
    return cgutils.for_range_slice(builder, row, end, step, _INT64), load


def _accumulator(builder: Any, first: Any) -> Any:  # noqa: ANN401
    slot = cgutils.alloca_once(builder, first.type)
    builder.store(first, slot)
    return slot


def _lanes(builder: Any, slot: Any, count: int) -> list[Any]:  # noqa: ANN401
    vector = builder.load(slot)
    return [builder.extract_element(vector, ir.Constant(ir.IntType(32), lane)) for lane in range(count)]


def _joined(lanes: list[Any], join: Callable[[Any, Any], Any]) -> Any:  # noqa: ANN401
    """Join neighbours, then neighbours of those, until one is left."""
    while len(lanes) > 1:
        lanes = [join(lanes[place], lanes[place + 1]) for place in range(0, len(lanes), 2)]
    return lanes[0]


def _reduce(typingctx: Any, values: Any, row: Any, stop: Any) -> Any:  # noqa: ANN401
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        def better(operator: str, old: Any, new: Any) -> Any:  # noqa: ANN401
            return builder.select(builder.fcmp_ordered(operator, new, old), new, old)

        total = _accumulator(builder, _constant(0.0, REDUCE_LANES))
        lowest = _accumulator(builder, _constant(math.inf, REDUCE_LANES))
        highest = _accumulator(builder, _constant(-math.inf, REDUCE_LANES))
        loop, load = _loop(builder, REDUCE_LANES, *args)
        with loop as (place, _):
            vector = load(place)
            builder.store(builder.fadd(builder.load(total), vector), total)
            builder.store(better("<", builder.load(lowest), vector), lowest)
            builder.store(better(">", builder.load(highest), vector), highest)
        answers = [
            _joined(_lanes(builder, total, REDUCE_LANES), builder.fadd),
            _joined(_lanes(builder, lowest, REDUCE_LANES), lambda old, new: better("<", old, new)),
            _joined(_lanes(builder, highest, REDUCE_LANES), lambda old, new: better(">", old, new)),
        ]
        return context.make_tuple(builder, signature.return_type, answers)

    return types.UniTuple(types.float64, 3)(types.int64, types.int64, types.int64), codegen


def _square(typingctx: Any, values: Any, row: Any, stop: Any, mean: Any) -> Any:  # noqa: ANN401
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        *place_arguments, mean_value = args
        undefined = ir.Constant(ir.VectorType(_DOUBLE, SQUARE_LANES), ir.Undefined)
        means = undefined
        for lane in range(SQUARE_LANES):
            means = builder.insert_element(means, mean_value, ir.Constant(ir.IntType(32), lane))
        squares = _accumulator(builder, _constant(0.0, SQUARE_LANES))
        rest = _accumulator(builder, _constant(0.0, SQUARE_LANES))
        loop, load = _loop(builder, SQUARE_LANES, *place_arguments)
        with loop as (place, _):
            deviation = builder.fsub(load(place), means)
            builder.store(builder.fadd(builder.load(squares), builder.fmul(deviation, deviation)), squares)
            builder.store(builder.fadd(builder.load(rest), deviation), rest)
        answers = [_joined(_lanes(builder, slot, SQUARE_LANES), builder.fadd) for slot in (squares, rest)]
        return context.make_tuple(builder, signature.return_type, answers)

    returns = types.UniTuple(types.float64, 2)
    return returns(types.int64, types.int64, types.int64, types.float64), codegen


def _value(values: int, row: int) -> float:
    return ctypes.c_double.from_address(int(values) + 8 * int(row)).value


def _reduce_plain(values: int, row: int, stop: int) -> tuple[float, float, float]:
    total = [0.0] * REDUCE_LANES
    lowest, highest = [math.inf] * REDUCE_LANES, [-math.inf] * REDUCE_LANES
    for place in range(row, row + (stop - row) // REDUCE_LANES * REDUCE_LANES):
        value, lane = _value(values, place), (place - row) % REDUCE_LANES
        total[lane] += value
        lowest[lane] = value if value < lowest[lane] else lowest[lane]
        highest[lane] = value if value > highest[lane] else highest[lane]
    return (
        _joined(total, lambda old, new: old + new),
        _joined(lowest, lambda old, new: new if new < old else old),
        _joined(highest, lambda old, new: new if new > old else old),
    )


def _square_plain(values: int, row: int, stop: int, mean: float) -> tuple[float, float]:
    squares, rest = [0.0] * SQUARE_LANES, [0.0] * SQUARE_LANES
    for place in range(row, row + (stop - row) // SQUARE_LANES * SQUARE_LANES):
        deviation, lane = _value(values, place) - mean, (place - row) % SQUARE_LANES
        squares[lane] += deviation * deviation
        rest[lane] += deviation
    return _joined(squares, lambda old, new: old + new), _joined(rest, lambda old, new: old + new)


reduce_vectors = cast(
    "Callable[[int, int, int], tuple[float, float, float]]",
    _reduce_plain if JIT_DISABLED else intrinsic(_reduce),
)
"""``reduce_vectors(values, row, stop)``: sum, minimum and maximum of the rows that fill whole vectors of
eight; those behind the last one are left to the caller. NaN is left out of minimum and maximum."""

square_vectors = cast(
    "Callable[[int, int, int, float], tuple[float, float]]",
    _square_plain if JIT_DISABLED else intrinsic(_square),
)
"""``square_vectors(values, row, stop, mean)``: sums of the squared and the plain deviations from `mean` of
the rows that fill whole vectors of four; those behind the last one are left to the caller."""
