// What a launch depends on. A header without CUDA: csrc/ops includes it under any compiler.
#pragma once

#include <cstddef>

namespace pb::cuda {

struct Device {
  std::size_t shared_bytes;  // dynamic shared memory that one block may have
  int multiprocessors;
};

// Reads the current device; throws std::runtime_error with CUDA's reason where there is none.
Device current_device();

}  // namespace pb::cuda
