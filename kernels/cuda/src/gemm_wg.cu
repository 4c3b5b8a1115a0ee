// See gemm_wg.cuh. grid (blocks), 384 threads. Only for sm_90a: elsewhere these kernels are not there, and gemm.cu has all
// products.
#include "gemm_wg.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
KERNEL(gemm_wg, WgArgs, 384) { products_wg<2, false>(a); }
KERNEL(gemm_wg_all, WgArgs, 384) { products_wg<3, false>(a); }
// Gate and up with what joins them.
KERNEL(glu_wg, WgArgs, 384) { products_wg<2, true>(a); }
KERNEL(glu_wg_all, WgArgs, 384) { products_wg<3, true>(a); }

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
