// The linear problems on CUDA, in double precision.
#include "cuda/linear_kernel.hpp"

namespace pb::cuda {

LinearLaunch plan_linear(const LinearParams<double>& params, LinearVariant variant, bool reverse,
                         const Device& device) {
  return with_task<double>(
      variant, [&]<class Task> { return plan_task<Task>(params, variant.coordinates, reverse, device); });
}

void linear_forward(const LinearParams<double>& params, LinearVariant variant, const LinearLaunch& launch,
                    void* stream) {
  with_task<double>(variant, [&]<class Task> { start_task<Task, false>(params, launch, stream); });
}

void linear_reverse(const LinearParams<double>& params, LinearVariant variant, const LinearLaunch& launch,
                    void* stream) {
  with_task<double>(variant, [&]<class Task> { start_task<Task, true>(params, launch, stream); });
}

}  // namespace pb::cuda
