"""Where everything is: the integer tables through which Python tells the compiled step about a model.

A compiled step takes one address: that of the state, a row of int64 fields. Sizes are counts, everything else is an
address or a stride in bytes. `tables` writes them, `forward` reads them.
"""

from __future__ import annotations

from enum import IntEnum

ROWS = 32  # rows of one block
GROUP = 32  # columns of one int4 group; every packed matrix has a multiple of this many columns
INT4_NIBBLE_BYTES = ROWS // 2 * GROUP // 2
INT4_HALF_BYTES = (
    INT4_NIBBLE_BYTES + 2 * ROWS // 2 * 2
)  # 16 rows x 32 columns: nibbles, then two half-precision numbers a row
INT4_GROUP_BYTES = 2 * INT4_HALF_BYTES

# Fields of one matrix; its kind is a number of `names.Kind`.
KIND, WEIGHT, SCALE, BIAS, BLOCK_BYTES, N_ROW, N_COLUMN = range(7)
MATRIX_FIELDS = 7

# Fields of a fusion: the other state (0: no fusion), the norms of both states, then two matrices, the first of which a
# fusion of full rank does not have.
F_OTHER, F_OTHER_NORM, F_OTHER_BIAS, F_NORM, F_BIAS = range(5)
F_DOWN = 5
F_UP = F_DOWN + MATRIX_FIELDS
FUSION_FIELDS = F_UP + MATRIX_FIELDS
FUSION_TENSORS = {
    "other_norm.weight": F_OTHER_NORM, "other_norm.bias": F_OTHER_BIAS, "norm.weight": F_NORM, "norm.bias": F_BIAS,
    "down.weight": F_DOWN, "up.weight": F_UP,
}  # fmt: skip

# Fields of one layer: sizes, activation (a number of `names.Activation`), norms, KV cache, rotary table, five matrices,
# then where its input is kept for a fusion (0: nowhere), and its own fusions with an early state and with one of the
# baseline. The names are those of the tensors that stand there.
L_HEAD, L_KV_HEAD, L_HEAD_DIM, L_KV_STRIDE, L_NEURON, L_GATED, L_ACTIVATION = range(7)
L_NORM1, L_NORM1_BIAS, L_NORM2, L_NORM2_BIAS, L_KEYS, L_VALUES, L_COS, L_SIN = range(7, 15)
L_QKV = 15
L_OUT = L_QKV + MATRIX_FIELDS
L_GATE = L_OUT + MATRIX_FIELDS
L_UP = L_GATE + MATRIX_FIELDS
L_DOWN = L_UP + MATRIX_FIELDS
L_KEEP = L_DOWN + MATRIX_FIELDS
L_SKIP = L_KEEP + 1
L_ADAPTER = L_SKIP + FUSION_FIELDS
# Norms of queries and keys (0: none; of each head, or of all in use), norms after the halves, pairs that are rotated, what
# the scores are multiplied by and capped at (float32 bits; 0: no cap), the window (0: none), how many places the KV
# cache has, a multiple of 32: with a window, position p is in place p modulo that; in int8 the scales of keys and values.
L_Q_NORM = L_ADAPTER + FUSION_FIELDS
L_K_NORM, L_WHOLE_NORM, L_POST1, L_POST1_BIAS, L_POST2, L_POST2_BIAS = range(L_Q_NORM + 1, L_Q_NORM + 7)
L_ROTARY, L_SCALE_BITS, L_CAP_BITS, L_WINDOW, L_PLACES = range(L_Q_NORM + 7, L_Q_NORM + 12)
L_KEY_SCALES, L_VALUE_SCALES = range(L_Q_NORM + 12, L_Q_NORM + 14)
LAYER_FIELDS = L_Q_NORM + 14
LAYER_TENSORS = {
    "attn_norm.weight": L_NORM1, "attn_norm.bias": L_NORM1_BIAS, "mlp_norm.weight": L_NORM2, "mlp_norm.bias": L_NORM2_BIAS,
    "attn.qkv_proj.weight": L_QKV, "attn.out_proj.weight": L_OUT, "mlp.gate_proj.weight": L_GATE,
    "mlp.up_proj.weight": L_UP, "mlp.down_proj.weight": L_DOWN,
    "attn.q_norm.weight": L_Q_NORM, "attn.k_norm.weight": L_K_NORM,
    "attn_post_norm.weight": L_POST1, "attn_post_norm.bias": L_POST1_BIAS,
    "mlp_post_norm.weight": L_POST2, "mlp_post_norm.bias": L_POST2_BIAS,
}  # fmt: skip

# Fields of one row (a token of one sequence).
R_TOKEN, R_SEQUENCE, R_POSITION, R_WANTED = range(4)
ROW_FIELDS = 4


class S(IntEnum):
    """Fields of the state."""

    THREADS = 0
    N_LAYER = 1
    N_EMBD = 2
    VOCAB = 3
    LOGIT_CAP_BITS = 4  # float32 bits of what logits are capped at, or 0
    LAYERNORM = 5
    EPS_BITS = 6  # float32 bits of norm_eps
    KV_BYTES = 7  # of a cached key or value: 4, 2, or 1 beside a float32 scale per head and position
    N_ROW = 8
    ROWS = 9
    LAYERS = 10
    EMBED = 11  # address of a matrix's fields
    HEAD = 12  # address of a matrix's fields
    POSITIONS = 13  # float32 [S, C], or 0
    FINAL_NORM = 14
    FINAL_NORM_BIAS = 15
    X = 16  # residual stream, float32 [rows][C]
    X_STRIDE = 17
    QKV = 18
    QKV_STRIDE = 19
    ATTENTION = 20  # heads' outputs
    ATTENTION_STRIDE = 21
    HIDDEN = 22  # MLP neurons, or a low-rank fusion
    HIDDEN_STRIDE = 23
    INPUT = 24  # a matrix's input: float32 or int8 [rows][...]
    INPUT_STRIDE = 25
    INPUT_SCALE = 26  # float32 [rows][groups of columns], with the stride of the sums
    INPUT_SUM = 27  # 4 bytes each, [rows][groups of columns]: see `precision_int8` and `precision_int4`
    INPUT_SUM_STRIDE = 28
    LOGITS = 29
    LOGITS_STRIDE = 30
    BEST = 31  # int64 [rows]: most probable token
    PRIVATE = 32  # one area per thread
    PRIVATE_STRIDE = 33
    SYNC = 34
    PLAN = 35  # int64: counts, then attention tiles and wanted rows (below)
    PROFILE = 36  # int64 [`names.Part`]: cycles of thread 0 per part
    N_BASELINE = 37  # layers of the baseline, which follow those of the model in the table
    BASELINE_EMBED = 38  # address of a matrix's fields
    BASELINE_POSITIONS = 39  # float32 [S, C], or 0
    BASELINE_KEEP = 40  # where the state after the baseline's last layer is kept, or 0
    TOO_WIDE = 41  # 1 after a pass that put something into a half-precision cache which that can't hold
    PIECES = 42  # int64 [pieces][2]: address and bytes of what a pass only reads (`stream`), or 0 for a model's pass
    N_PIECE = 43
    REPEATS = 44  # how often it is read
    OUTPUT = 45  # float32 [rows][C], with the stride of X: what a half makes, before the norm after it
    PARALLEL = 46  # 1: both halves of a layer read the stream as it enters
    EMBED_SCALE_BITS = 47  # float32 bits of what embeddings are multiplied by
    N_FIELD = 48


# In a thread's private area, in bytes.
P_BARRIERS = 0  # int64: barriers passed so far
P_JOBS = 8  # int64: jobs done so far
P_READ = 16  # int64: sum of what `stream` has read
P_CLAIMS = 24  # int64: claims of all threads before the loop that they are in
P_BEST = 64  # per wanted row: int64 token, then float32 value in 8 bytes
P_BLOCK = 64 + 16 * 256  # float32 [rows][32] one block's output, twice
MAX_ROWS = 128  # tokens that go through the layers together, at most `WINDOW_SLACK`: rings take them whole
MAX_WANTED = 32  # of them, tokens whose logits are asked for
P_SCORES = P_BLOCK + 2 * MAX_ROWS * 128  # float32 [tile tokens][places + 32], from the first block that is seen

# In the plan of one pass, in int64s: what attention works on in all layers, and in the last layer after the keys and
# values are stored, when only the wanted rows go on.
N_TILE, N_LAST_TILE, N_WANTED = range(3)
TILES = 8  # [MAX_ROWS][2]: first row and tokens of each attention tile
LAST_TILES = TILES + 2 * MAX_ROWS
WANTED = LAST_TILES + 2 * MAX_ROWS  # [MAX_ROWS]: rows whose logits are asked for
LAST_ROWS = WANTED + MAX_ROWS  # [MAX_ROWS][ROW_FIELDS]: their rows of the row table
PLAN_INTS = LAST_ROWS + ROW_FIELDS * MAX_ROWS

# In the area that threads synchronise on, in bytes: each on its own cache line.
Y_JOB = 0  # number of the newest job
Y_ARRIVED = 64  # arrivals at barriers
Y_CLAIMED = 128  # items that were claimed, and one more per thread and loop
Y_PARKED = 192  # per thread: 1 while it sleeps
