// Plans and devices, kept from one call to the next. Empty unless torch itself has CUDA.
#if PB_WITH_TORCH_CUDA

#include "ops/launch_cuda.hpp"

#include <ATen/ops/from_blob.h>

#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace pb {

// Plans in device memory, by device and content. They are few and small, and are kept for good: a captured CUDA graph
// may point into one. (Capture a call only after it has run once: the first use of a plan copies it.) A program that
// takes another number of steps each time collects 8 bytes for each op of every plan, up to 32 T bytes.
const PlacedOp* plan_on_device(const PlacedOp* ops, Index count, const at::Tensor& like) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::vector<std::int32_t>>, at::Tensor> plans;
  const auto* words = reinterpret_cast<const std::int32_t*>(ops);
  constexpr Index kWords = sizeof(PlacedOp) / sizeof(std::int32_t);
  std::pair<int, std::vector<std::int32_t>> key{like.get_device(), {words, words + kWords * count}};
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.find(key);
  if (found == plans.end()) {
    const at::Tensor host = at::from_blob(key.second.data(), {kWords * count}, at::kInt);
    found = plans.emplace(std::move(key), host.to(like.device())).first;
  }
  return reinterpret_cast<const PlacedOp*>(found->second.const_data_ptr<int>());
}

const cuda::Device& known_device(const at::Tensor& x) {
  static std::mutex mutex;
  static std::map<int, cuda::Device> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = devices.find(x.get_device());
  if (found == devices.end()) found = devices.emplace(x.get_device(), cuda::current_device()).first;
  return found->second;
}

}  // namespace pb

#endif  // PB_WITH_TORCH_CUDA
