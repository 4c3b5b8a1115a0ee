// See chain.cuh.
#include "chain.cuh"

// grid (rows, parts, most slices), shared: the widest Hadamard run
EARLY_KERNEL(row_chain, ChainArgs, 512, 1) {
    DYNAMIC_SHARED(memory);
    chain_block(a, blockIdx.x, blockIdx.y, blockIdx.z, (float*)memory);
}

// Chains of several sequences. They are too long to come with the launch.
struct ChainEachArgs {
    const ChainArgs* of;  // [sequences]
    uint32_t rows;        // of one sequence
    uint32_t pad;
};

// grid (sequences * rows, parts, most slices), shared as above
EARLY_KERNEL(row_chain_each, ChainEachArgs, 512, 1) {
    DYNAMIC_SHARED(memory);
    __shared__ ChainArgs mine;
    static_assert(sizeof(ChainArgs) % 8 == 0, "copied in words of 8 bytes");
    const uint64_t* from = (const uint64_t*)(a.of + blockIdx.x / a.rows);
    for (uint32_t i = threadIdx.x; i < sizeof(ChainArgs) / 8; i += blockDim.x) ((uint64_t*)&mine)[i] = from[i];
    __syncthreads();
    chain_block(mine, blockIdx.x % a.rows, blockIdx.y, blockIdx.z, (float*)memory);
}
