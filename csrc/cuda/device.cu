// Asks the CUDA runtime about the current device.
#include "cuda/device.hpp"
#include "cuda/portability.hpp"

namespace pb::cuda {
namespace {

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // reported here
  throw std::runtime_error(std::string("no CUDA device can be used: ") + cudaGetErrorString(status));
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

}  // namespace

Device current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return {static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
          attribute(cudaDevAttrMultiProcessorCount, device)};
}

}  // namespace pb::cuda
