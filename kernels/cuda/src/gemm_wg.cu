// See gemm_wg.cuh. grid (blocks), 384 threads. Only for sm_90a: elsewhere these kernels are not there, and gemm.cu has all
// products.
#include "gemm_wide.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
KERNEL(gemm_wg, WgArgs, 384) { products_wg<2, false>(a); }
KERNEL(gemm_wg_all, WgArgs, 384) { products_wg<3, false>(a); }
// Gate and up with what joins them.
KERNEL(glu_wg, WgArgs, 384) { products_wg<2, true>(a); }
KERNEL(glu_wg_all, WgArgs, 384) { products_wg<3, true>(a); }

// Wide tiles, of a block and of two that share its inputs. grid (blocks; `near`: of clusters of two), 384 threads
KERNEL(gemm_wide, WgArgs, 384) { products_wide<2, 1>(a); }
KERNEL(gemm_wide_all, WgArgs, 384) { products_wide<3, 1>(a); }
#ifdef MODEL1_EMULATE
#define NEAR_KERNEL(name) KERNEL(name, WgArgs, 384)
#else
#define NEAR_KERNEL(name)                                                           \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) \
        name(const __grid_constant__ WgArgs a)
#endif
NEAR_KERNEL(gemm_near) {
    await_predecessor();
    products_wide<2, 2>(a);
}
NEAR_KERNEL(gemm_near_all) {
    await_predecessor();
    products_wide<3, 2>(a);
}

// Adds the shares up in order. grid (ceil(outputs / 1024), tokens), 256 threads
KERNEL(gemm_wg_sum, WgArgs, 256) {
    const uint32_t o = 4 * (blockIdx.x * blockDim.x + threadIdx.x), t = blockIdx.y;
    if (o >= a.rows || t >= step_rows(*a.step, a.tokens)) return;
    uint32_t m = 0;
    while (m + 1 < a.n && o >= a.matrices[m + 1].first_row) m++;
    const WgMatrix& matrix = a.matrices[m];
    const uint32_t c = o - matrix.first_row;
    float4 v = matrix.bias.data == nullptr ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : vector_four(matrix.bias, c);
    for (uint32_t s = 0; s < a.splits; s++) {
        const float4 share = *(const float4*)(a.partial + ((size_t)s * a.bucket + t) * a.rows + o);
        v.x += share.x;
        v.y += share.y;
        v.z += share.z;
        v.w += share.w;
    }
    const size_t place = (size_t)t * matrix.out_stride + c;
    if (matrix.residual != nullptr) {
        const float4 before = *(const float4*)(matrix.residual + place);
        v.x += before.x;
        v.y += before.y;
        v.z += before.z;
        v.w += before.w;
    }
    *(float4*)(matrix.out + place) = v;
}
#endif
