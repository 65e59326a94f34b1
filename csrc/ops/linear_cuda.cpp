// The fused linear problems on torch's CUDA tensors: device guard, stream, workspace, and the plan in device memory.
// Empty unless torch itself has CUDA.
#if PB_WITH_TORCH_CUDA

#include "ops/linear_cuda.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/linear.hpp"

namespace pb {
namespace {

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

const cuda::Device& device_of(int index) {
  static std::mutex mutex;
  static std::map<int, cuda::Device> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = devices.find(index);
  if (found == devices.end()) found = devices.emplace(index, cuda::current_device()).first;
  return found->second;
}

cuda::LinearKernel kernel_of(bool rows) {
  return rows ? cuda::LinearKernel::kGrid : cuda::LinearKernel::kChoose;
}

}  // namespace

template <class T>
void run_cuda(LinearParams<T> params, LinearVariant variant, bool rows, const at::Tensor& x, bool reverse) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cuda::LinearLaunch how =
      cuda::plan_linear(params, variant, kernel_of(rows), reverse, device_of(x.get_device()));
  params.plan = plan_on_device(params.plan, params.plan_length, x);
  const at::Tensor workspace = at::empty({how.workspace_size}, x.options());
  params.workspace = workspace.template data_ptr<T>();
  void* const stream = c10::cuda::getCurrentCUDAStream().stream();
  (reverse ? cuda::linear_reverse<T> : cuda::linear_forward<T>)(params, variant, how, stream);
}

template <class T>
Index tape_size_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows, const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  return cuda::plan_linear(params, variant, kernel_of(rows), false, device_of(x.get_device())).tape_size;
}

template <class T>
Index scratch_bytes_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows,
                         const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  Index most = 0;
  for (const bool reverse : {false, true}) {
    const cuda::LinearLaunch how =
        cuda::plan_linear(params, variant, kernel_of(rows), reverse, device_of(x.get_device()));
    most = std::max(most, how.workspace_size * Index(sizeof(T)));
  }
  return most;
}

template void run_cuda<float>(LinearParams<float>, LinearVariant, bool, const at::Tensor&, bool);
template void run_cuda<double>(LinearParams<double>, LinearVariant, bool, const at::Tensor&, bool);
template Index tape_size_cuda<float>(const LinearParams<float>&, LinearVariant, bool, const at::Tensor&);
template Index tape_size_cuda<double>(const LinearParams<double>&, LinearVariant, bool, const at::Tensor&);
template Index scratch_bytes_cuda<float>(const LinearParams<float>&, LinearVariant, bool, const at::Tensor&);
template Index scratch_bytes_cuda<double>(const LinearParams<double>&, LinearVariant, bool,
                                          const at::Tensor&);

}  // namespace pb

#endif  // PB_WITH_TORCH_CUDA
