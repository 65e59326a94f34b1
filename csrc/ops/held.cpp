// The torch class that measures the memory of what code leaves behind:
//
//   pybilevel::Held     the bytes alive of the storages that operations made
//
// pybilevel/ops/held.py documents its methods. A dispatch mode of Python's, which sees the same, takes 20 us an operation.
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <c10/util/flat_hash_map.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace pb {
namespace {

using at::Tensor;

// Threads that autograd works in for this one have what is kept here too. No other kind is free in all versions of torch;
// torch itself uses none of this name.
const auto kKind = c10::DebugInfoKind::PRODUCER_INFO;

// each(tensor) for the defined tensors in a value, those of lists included.
template <class Each>
void for_tensors(const c10::IValue& value, Each&& each) {
  if (value.isTensor()) {
    if (const Tensor& tensor = value.toTensor(); tensor.defined()) each(tensor);
  } else if (value.isList()) {
    for (const c10::IValue& one : value.toList()) for_tensors(one, each);
  }
}

c10::StorageImpl* place_of(const Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

// Storages that operations made. By address, which is not another's as long as a weak reference is held.
class Storages final : public c10::DebugInfoBase {
 public:
  explicit Storages(Storages* around) : around(around) {}

  void add(const Tensor& tensor) {
    const std::lock_guard<std::mutex> lock(mutex_);
    made_.emplace(place_of(tensor), Weak(tensor.storage().getWeakStorageImpl()));
  }

  std::int64_t live() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::int64_t total = 0;
    for (const auto& [_, weak] : made_) {
      if (const auto storage = weak.lock()) total += static_cast<std::int64_t>(storage->nbytes());
    }
    return total;
  }

  Storages* const around;  // of a meter that this one is within

 private:
  using Weak = c10::weak_intrusive_ptr<c10::StorageImpl>;
  std::mutex mutex_;
  ska::flat_hash_map<c10::StorageImpl*, Weak> made_;
};

Storages* current() { return static_cast<Storages*>(c10::ThreadLocalDebugInfo::get(kKind)); }

// The storages that an operation is given: what it returns of them it has not made.
struct Given : at::ObserverContext {
  std::vector<c10::StorageImpl*> places;
};

std::unique_ptr<at::ObserverContext> begins(const at::RecordFunction& function) {
  auto given = std::make_unique<Given>();
  for (const c10::IValue& value : function.inputs()) {
    for_tensors(value, [&](const Tensor& tensor) { given->places.push_back(place_of(tensor)); });
  }
  return given;
}

void ends(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  const auto& given = static_cast<Given*>(context)->places;
  for (const c10::IValue& value : function.outputs()) {
    for_tensors(value, [&](const Tensor& tensor) {
      const auto* const place = place_of(tensor);
      if (place == nullptr || std::find(given.begin(), given.end(), place) != given.end()) return;
      for (Storages* one = current(); one != nullptr; one = one->around) one->add(tensor);
    });
  }
}

// Those made within it end first.
class Held final : public torch::CustomClassHolder {
 public:
  explicit Held(const std::vector<Tensor>& before) : storages_(std::make_shared<Storages>(current())) {
    const bool outermost = current() == nullptr;
    for (const Tensor& tensor : before) {
      if (place_of(tensor)) storages_->add(tensor);
    }
    watching_.emplace(kKind, storages_);
    enabled_.emplace();
    if (outermost) {
      handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&begins, &ends)
                                               .needsInputs(true)
                                               .needsOutputs(true)
                                               .scopes({at::RecordScope::FUNCTION}));
    }
  }

  ~Held() override { end(); }

  std::int64_t live() const { return storages_->live(); }

  void end() {
    if (handle_) at::removeCallback(*handle_);
    handle_.reset();
    enabled_.reset();
    watching_.reset();
  }

 private:
  std::shared_ptr<Storages> storages_;
  std::optional<c10::DebugInfoGuard> watching_;
  std::optional<at::RecordFunctionGuard> enabled_;
  std::optional<at::CallbackHandle> handle_;  // that of the outermost serves all
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.class_<Held>("Held")
      .def(torch::init<std::vector<Tensor>>())
      .def("live", &Held::live)
      .def("end", &Held::end);
}

}  // namespace pb
