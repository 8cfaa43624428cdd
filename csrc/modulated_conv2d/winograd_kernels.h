// Compiled once per instruction set (common/each_isa.h); see winograd.h for the algorithm.

#include "modulated_conv2d/scale_kernels.h"
#include "modulated_conv2d/product_kernels.h"
#include "modulated_conv2d/point_kernels.h"
#include "modulated_conv2d/tile_kernels.h"
#include "modulated_conv2d/wide_kernels.h"
#include "modulated_conv2d/weight_kernels.h"
