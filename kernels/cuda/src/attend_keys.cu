// See attend_keys.cuh. One kernel per cache format: kernels of one token wait for their own instructions.
#include "attend_keys.cuh"
#include "each.cuh"

// grid (1, query heads / heads per block, splits), 256 threads, or (sequences, ...) for `_each`; shared: `KeysShape::shared` in ../ops/attend/row.rs
#define ATTEND_KEYS(shape, format, Key, lanes, columns, team, same, blocks) \
    EARLY_KERNEL(attend_keys_##shape##_##format, AttendArgs, 256, blocks) { attend_keys<Key<columns>, lanes, columns, team, same>(a); } \
    EARLY_KERNEL(attend_keys_##shape##_##format##_each, Each<AttendArgs>, 256, blocks) {                                                \
        attend_keys<Key<columns>, lanes, columns, team, same>(a.of[blockIdx.x]);                                                      \
    }
#define ATTEND_KEYS_ALL(shape, lanes, columns, team, same, blocks)             \
    ATTEND_KEYS(shape, f32, KeyF32, lanes, columns, team, same, blocks)   \
    ATTEND_KEYS(shape, bf16, KeyBf16, lanes, columns, team, same, blocks)   \
    ATTEND_KEYS(shape, fp8, KeyFp8, lanes, columns, team, same, blocks)

ATTEND_KEYS_ALL(64x1, 1, 8, 8, false, 2)
ATTEND_KEYS_ALL(64x3, 3, 8, 8, false, 2)
ATTEND_KEYS_ALL(128x1, 1, 8, 16, false, 2)
ATTEND_KEYS_ALL(128x3, 3, 8, 16, false, 2)
ATTEND_KEYS_ALL(512x2, 2, 16, 32, true, 1)
