// Result tensors whose memory comes back: what torch's caching allocator does on CUDA, for the large results on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

namespace pb {

// An uninitialised tensor. On a CPU, memory of 64 KiB and more is kept when the tensor dies and given to the next result
// of that size, up to kKeptBytes in all: the system would take such blocks back, and hand them out again page by page,
// zeroed. Measured: a meta-step of 256 tasks, whose features' gradient is 5 MB, spent half of its 2 ms there.
at::Tensor empty_recycled(at::IntArrayRef shape, const at::TensorOptions& options);

inline constexpr std::size_t kKeptBytes = std::size_t{256} << 20;

}  // namespace pb
