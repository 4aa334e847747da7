"""The two inner loops of a decode step on a CPU: dot products of rows with columns, and weighted sums of rows.

Each is a family of intrinsics, one for each number of sums that it keeps in registers. They take any number of the type
that the rows are stored in (float32, or uint16 for bfloat16), then addresses in bytes and strides in elements. The
arithmetic of a result depends neither on the block's size nor on what is computed beside it.
"""

from itertools import product
from typing import Any

from numba import types
from numba.extending import intrinsic

from engine.kernels.cpu.vector import LANES, Floats, Vectors, count


def dot_block(rows: int, columns: int, fetches: bool = False) -> Any:
    """out[c, r] = the dot product of row r and column c; `rows` is 1 or 4.

    Columns and results are float32. With `fetches` every line of a row that is read asks for the one `ahead` elements
    behind it.
    """
    float32 = Floats(types.float32)

    @intrinsic
    def dots(typing, stored, row_at, row_stride, column_at, column_stride, out_at, out_stride, depth, ahead):
        def generate(context, builder, signature, operands):
            _, row_at, row_stride, column_at, column_stride, out_at, out_stride, depth, ahead = operands
            vectors, floats = Vectors(builder), Floats(stored)

            def starts(address, stride, number, kind):
                first = vectors.pointer(address, kind)
                return [builder.gep(first, [builder.mul(stride, count(n))]) for n in range(number)]

            row_starts = starts(row_at, row_stride, rows, floats.stored)
            column_starts = starts(column_at, column_stride, columns, float32.stored)

            def add(load, i, sums):
                column = [load(builder.gep(start, [i]), float32) for start in column_starts]
                for r, start in enumerate(row_starts):
                    if fetches:
                        vectors.fetch(builder.gep(start, [builder.add(i, ahead)]))
                    row = load(builder.gep(start, [i]), floats)
                    for c in range(columns):
                        sums[r * columns + c] = vectors.fma(row, column[c], sums[r * columns + c])
                return sums

            none = [vectors.zero] * (rows * columns)
            sums = vectors.loop(depth, LANES, none, lambda i, sums: add(vectors.load, i, sums))
            num_left = builder.srem(depth, count(LANES))
            some_left = builder.icmp_signed(">", num_left, count(0))
            sums = vectors.when(
                some_left,
                sums,
                lambda sums: add(
                    lambda at, kind: vectors.load_first(at, kind, num_left), builder.sub(depth, num_left), sums
                ),
            )
            for c, out in enumerate(starts(out_at, out_stride, columns, float32.stored)):
                totals = vectors.sums([sums[(r % rows) * columns + c] for r in range(4)])
                vectors.store(totals if rows == 4 else vectors.first(totals), out)
            return context.get_dummy_value()

        return types.void(stored, *[types.int64] * 8), generate

    return dots


def sum_block(rows: int, width: int) -> Any:
    """acc[r, :] += the sum over s < `number` of weight[r, s] * x[s, :], for `width` vectors of 16.

    Weights and sums are float32. Every line of x that is read asks for the one `ahead` elements behind it.
    """
    float32 = Floats(types.float32)

    @intrinsic
    def add_rows(typing, stored, x_at, x_stride, weight_at, weight_stride, acc_at, acc_stride, number, ahead):
        def generate(context, builder, signature, operands):
            _, x_at, x_stride, weight_at, weight_stride, acc_at, acc_stride, number, ahead = operands
            vectors, floats = Vectors(builder), Floats(stored)
            x, weight, acc = vectors.pointer(x_at, floats.stored), vectors.pointer(weight_at), vectors.pointer(acc_at)

            def place(r, v):
                return builder.gep(acc, [builder.add(builder.mul(acc_stride, count(r)), count(v * LANES))])

            def add(s, sums):
                start, lines = builder.gep(x, [builder.mul(s, x_stride)]), []
                for v in range(width):
                    at = builder.gep(start, [count(v * LANES)])
                    vectors.fetch(builder.gep(at, [ahead]))
                    lines.append(vectors.load(at, floats))
                for r in range(rows):
                    at = builder.gep(weight, [builder.add(s, builder.mul(weight_stride, count(r)))])
                    spread = vectors.spread(builder.load(at))
                    for v in range(width):
                        sums[r * width + v] = vectors.fma(spread, lines[v], sums[r * width + v])
                return sums

            places = [place(r, v) for r, v in product(range(rows), range(width))]
            sums = vectors.loop(number, 1, [vectors.load(at, float32) for at in places], add)
            for at, total in zip(places, sums, strict=True):
                vectors.store(total, at)
            return context.get_dummy_value()

        return types.void(stored, *[types.int64] * 8), generate

    return add_rows
