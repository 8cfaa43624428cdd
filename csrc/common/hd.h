// RWM_HD marks inline functions that the CPU and the CUDA sources share.
#pragma once

#if defined(__CUDACC__)
#define RWM_HD __host__ __device__ __forceinline__
#else
#define RWM_HD inline
#endif
