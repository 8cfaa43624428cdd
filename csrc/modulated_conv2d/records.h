// What Python hands to the functions of modulated_conv2d (common/records.h): images are
// channels_last in the dtype of the call, all others contiguous in the accumulator's.
#pragma once

#include "bias_act/records.h"

namespace rwm::records {

// Kernels in memory: that from input channel i to output channel o at o·out + i·in, its numbers
// `tap` apart.
struct KernelStrides {
  std::int64_t out, in, tap;
};

// A parameter [out_c, in_c, height, width], contiguous or channels_last.
struct Kernels {
  std::int64_t out_c, in_c;
  Pair size;
  bool channels_last, flip_weight;
  int dtype;

  void validate() const {
    check_least("Kernels", "out_channels", out_c, 0);
    check_least("Kernels", "in_channels", in_c, 0);
    check_least("Kernels", "size", size, 1);
    const auto type = static_cast<DType>(dtype);
    check(type == DType::f32 || type == DType::f64,
          "Kernels: dtype must be float32 or float64, got code ", dtype);
    // points and panels: no product of them overflows
    elements("Kernels: all numbers",
             {81, size.first + 16, size.second + 16, in_c + 16, out_c + 16});
  }

  std::int64_t taps() const { return size.first * size.second; }
  std::int64_t pairs() const { return out_c * in_c; }
  KernelStrides strides() const {
    if (channels_last) return {in_c * taps(), 1, in_c};
    return {in_c * taps(), taps(), 1};
  }
};

// [batch, pixels, channels].
struct Images {
  std::int64_t batch, pixels, channels;
  int dtype;

  void validate() const {
    check_least("Images", "batch", batch, 0);
    check_least("Images", "pixels", pixels, 0);
    check_least("Images", "channels", channels, 0);
    check_dtype("Images", "dtype", dtype);
    elements("Images: all numbers", {batch, pixels, channels});
  }

  std::int64_t numbers() const { return batch * pixels * channels; }
};

// A scale for each channel and pixel: sum_k regions[n, k, p]·scale[n, k, c]; without regions
// scale[n, c], without a scale 1.
struct Blend {
  Pointer scale = 0;    // [N, styles, C]
  Pointer regions = 0;  // [N, styles, P]
  std::int64_t styles = 1;

  void validate() const {
    check_least("Blend", "styles", styles, 1);
    check(styles < kMostElements, "Blend: styles must fit memory, got ", styles);
    check(regions == 0 || scale != 0, "Blend: regions must come with a scale, got none");
    check(styles == 1 || scale == 0 || regions != 0,
          "Blend: styles must be 1 without regions, got ", styles);
  }

  void check_sizes(std::int64_t batch, std::int64_t pixels, std::int64_t channels) const {
    elements("Blend: all scales and regions", {batch, 1 + styles, 81, std::max(pixels, channels)});
  }
};

// y = activation(blend·u + strength·noise + bias).
struct Epilogue {
  Blend blend;
  Pointer noise = 0;             // [N or 1, P]
  bool noise_per_image = false;  // [N, P]
  Pointer strength = 0;          // one number; 0: it is 1
  Pointer bias = 0;              // [C]
  Activation activation;

  void validate() const {}
};

// ---- of the CUDA module

// What a backward pass writes; 0 is not wanted. `wide`: accesses of 16 bytes, with which there are
// fewer runs of channels.
struct Sums {
  Pointer out = 0;       // blend·dv, like the images
  Pointer channels = 0;  // [N, chunks, summed + 1, C]
  Pointer pixels = 0;    // [runs, N, P]
  Pointer regions = 0;   // [runs, N, styles, P]
  Pointer strength = 0;  // [runs, N, chunks]
  std::int64_t chunks = 1;
  std::int64_t first_style = 0;
  int summed = 1;  // styles from first_style on
  bool wide = false;

  void validate() const {
    check_least("Sums", "chunks", chunks, 1);
    check_least("Sums", "first_style", first_style, 0);
    check(summed == 1 || summed == 2, "Sums: summed must be 1 or 2, got ", summed);
  }
};

// The sums of a layer to RGB; 0 is not wanted.
struct RgbSums {
  int outputs = 1;
  Pointer dx = 0;        // like x
  Pointer products = 0;  // [N, chunks, styles, outputs, C]
  Pointer bias = 0;      // [N, chunks, outputs]
  std::int64_t chunks = 1;

  void validate() const {
    check_least("RgbSums", "outputs", outputs, 1);
    check_least("RgbSums", "chunks", chunks, 1);
  }
};

}  // namespace rwm::records
