// Python classes of records.h.
#pragma once

#include "common/bind_record.h"
#include "modulated_conv2d/records.h"

namespace rwm {

inline void bind_records(pybind11::module_& m) {
  using namespace records;
  using std::pair;
  bind_fields<Images, false>(m, "Images", pair("batch", &Images::batch),
                             pair("pixels", &Images::pixels), pair("channels", &Images::channels),
                             pair("dtype", &Images::dtype));
  bind_fields(m, "Blend", pair("scale", &Blend::scale), pair("regions", &Blend::regions),
              pair("styles", &Blend::styles));
  bind_fields(m, "Epilogue", pair("blend", &Epilogue::blend), pair("noise", &Epilogue::noise),
              pair("noise_per_image", &Epilogue::noise_per_image),
              pair("strength", &Epilogue::strength), pair("bias", &Epilogue::bias),
              pair("activation", &Epilogue::activation));
}

inline void bind_cuda_records(pybind11::module_& m) {
  using namespace records;
  using std::pair;
  bind_fields(m, "Sums", pair("out", &Sums::out), pair("channels", &Sums::channels),
              pair("pixels", &Sums::pixels), pair("regions", &Sums::regions),
              pair("strength", &Sums::strength), pair("chunks", &Sums::chunks),
              pair("first_style", &Sums::first_style), pair("summed", &Sums::summed),
              pair("wide", &Sums::wide));
  bind_fields(m, "RgbSums", pair("outputs", &RgbSums::outputs), pair("dx", &RgbSums::dx),
              pair("products", &RgbSums::products), pair("bias", &RgbSums::bias),
              pair("chunks", &RgbSums::chunks));
}

}  // namespace rwm
