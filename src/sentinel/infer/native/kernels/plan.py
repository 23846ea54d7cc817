"""What a pass works on: runs of tokens for attention, and the rows whose logits are asked for."""

from __future__ import annotations

from numba import njit

from .cpu import TILE_TOKENS
from .intrinsics import f32_view, i64_table, i64_view
from .layout import (
    LAST_ROWS,
    LAST_TILES,
    MAX_ROWS,
    N_LAST_TILE,
    N_TILE,
    N_WANTED,
    PLAN_INTS,
    R_POSITION,
    R_SEQUENCE,
    R_WANTED,
    ROW_FIELDS,
    TILES,
    WANTED,
    S,
)  # fmt: skip
from .vector import FAST

_ROWS, _ROW_TABLE, _PLAN, _N_EMBD = int(S.N_ROW), int(S.ROWS), int(S.PLAN), int(S.N_EMBD)
_LONGEST = TILE_TOKENS[0]
_X, _X_STRIDE, _QKV, _QKV_STRIDE = int(S.X), int(S.X_STRIDE), int(S.QKV), int(S.QKV_STRIDE)


@njit(**FAST)
def _tiles(rows, n, tiles):
    """Cut rows into runs of consecutive tokens of one sequence, at most ``_LONGEST`` long. Returns their number."""
    count, start = 0, 0
    for r in range(1, n + 1):
        if (
            r == n
            or r - start == _LONGEST
            or rows[r, R_SEQUENCE] != rows[start, R_SEQUENCE]
            or rows[r, R_POSITION] != rows[r - 1, R_POSITION] + 1
        ):
            tiles[2 * count], tiles[2 * count + 1] = start, r - start
            count += 1
            start = r
    return count


@njit(**FAST)
def make_plan(st):
    """What attention and the head work on in this pass."""
    n = st[_ROWS]
    rows = i64_table(st[_ROW_TABLE], n, ROW_FIELDS)
    plan = i64_view(st[_PLAN], PLAN_INTS)
    wanted = 0
    for r in range(n):
        if rows[r, R_WANTED]:
            plan[WANTED + wanted] = r
            for f in range(ROW_FIELDS):
                plan[LAST_ROWS + wanted * ROW_FIELDS + f] = rows[r, f]
            wanted += 1
    plan[N_WANTED] = wanted
    plan[N_TILE] = _tiles(rows, n, plan[TILES : TILES + 2 * MAX_ROWS])
    last = i64_table(st[_PLAN] + 8 * LAST_ROWS, MAX_ROWS, ROW_FIELDS)
    plan[N_LAST_TILE] = _tiles(last, wanted, plan[LAST_TILES : LAST_TILES + 2 * MAX_ROWS]) if wanted else 0


@njit(**FAST)
def keep_wanted(st, plan):
    """Move the wanted rows of the residual stream and of the queries to the front."""
    for i in range(plan[N_WANTED]):
        r = plan[WANTED + i]
        if r != i:
            x, y = st[_X] + r * st[_X_STRIDE], st[_X] + i * st[_X_STRIDE]
            source, target = f32_view(x, st[_N_EMBD]), f32_view(y, st[_N_EMBD])
            for k in range(target.size):
                target[k] = source[k]
            q, p = st[_QKV] + r * st[_QKV_STRIDE], st[_QKV] + i * st[_QKV_STRIDE]
            source, target = f32_view(q, st[_QKV_STRIDE] // 4), f32_view(p, st[_QKV_STRIDE] // 4)
            for k in range(target.size):
                target[k] = source[k]
