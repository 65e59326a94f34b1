#include "ops/remembered.hpp"

#include <ATen/core/grad_mode.h>

#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace pb {
namespace {

using Constants = c10::intrusive_ptr<UnrollConstants>;

class Memory {
 public:
  // Never destroyed: constants hold tensors, whose allocator static objects may outlive.
  static Memory& instance() {
    static Memory* const memory = new Memory;
    return *memory;
  }

  // What is dropped is destroyed without the lock: a plan may wait for Python's.
  void keep(TensorForm form, Constants constants, std::size_t most) {
    std::vector<Constants> dropped;
    const std::lock_guard<std::mutex> lock(mutex_);
    Constants& place = kept_[form];
    if (!place) order_.push_back(std::move(form));
    dropped.push_back(std::exchange(place, std::move(constants)));
    while (order_.size() > most) {
      dropped.push_back(std::move(kept_.extract(order_.front()).mapped()));
      order_.pop_front();
    }
  }

  Constants find(const TensorForm& form) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = kept_.find(form);
    return found == kept_.end() ? Constants() : found->second;
  }

  std::size_t size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return order_.size();
  }

  void clear() {
    std::map<TensorForm, Constants> dropped;
    const std::lock_guard<std::mutex> lock(mutex_);
    dropped.swap(kept_);
    order_.clear();
  }

 private:
  std::mutex mutex_;
  std::map<TensorForm, Constants> kept_;
  std::deque<TensorForm> order_;  // the oldest first
};

}  // namespace

TensorForm form_of(Index family, const std::vector<at::Tensor>& tensors) {
  TensorForm form{family, at::GradMode::is_enabled()};
  form.reserve(8 * tensors.size());
  for (const at::Tensor& t : tensors) {
    if (!t.defined()) {
      form.push_back(-1);
      continue;
    }
    if (t.layout() != at::kStrided) return {};
    const at::Device device = t.device();
    form.insert(form.end(), {t.dim(), static_cast<Index>(t.scalar_type()), static_cast<Index>(device.type()),
                             device.index(), t.requires_grad()});
    form.insert(form.end(), t.sizes().begin(), t.sizes().end());
  }
  return form;
}

void remember(TensorForm form, Constants constants, std::size_t most) {
  if (!form.empty()) Memory::instance().keep(std::move(form), std::move(constants), most);
}

Constants recall(const TensorForm& form) { return Memory::instance().find(form); }

std::size_t remembered_forms() { return Memory::instance().size(); }

void forget_forms() { Memory::instance().clear(); }

}  // namespace pb
