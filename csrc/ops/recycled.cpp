#include "ops/recycled.hpp"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace pb {
namespace {

constexpr std::size_t kSmall = std::size_t{64} << 10, kPage = 4096, kHugePage = std::size_t{2} << 20;

// A block remembers its size before its first byte, in a header that keeps it aligned.
constexpr std::size_t kHeader = 64;

class Recycler final : public c10::Allocator {
 public:
  // Never destroyed: tensors may outlive every static object.
  static Recycler& instance() {
    static Recycler* const recycler = new Recycler;
    return *recycler;
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    const std::size_t size = (bytes + kHeader + kPage - 1) / kPage * kPage;
    void* const block = take(size);
    return {static_cast<char*>(block) + kHeader, block, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }  // the context is not the data

  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }

 private:
  void* take(std::size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto& blocks = kept_[size];
      if (!blocks.empty()) {
        void* const block = blocks.back();
        blocks.pop_back();
        kept_bytes_ -= size;
        return block;
      }
    }
    const bool huge = size >= 2 * kHugePage;
    void* const block = std::aligned_alloc(huge ? kHugePage : kPage, huge ? round_to_huge(size) : size);
    if (!block) throw std::bad_alloc();
    if (huge) madvise(block, round_to_huge(size), MADV_HUGEPAGE);  // a wish: what it returns changes nothing
    *static_cast<std::size_t*>(block) = size;
    return block;
  }

  static std::size_t round_to_huge(std::size_t size) {
    return (size + kHugePage - 1) / kHugePage * kHugePage;
  }

  static void release(void* block) {
    Recycler& all = instance();
    const std::size_t size = *static_cast<const std::size_t*>(block);
    {
      const std::lock_guard<std::mutex> lock(all.mutex_);
      if (all.kept_bytes_ + size <= kKeptBytes) {
        all.kept_[size].push_back(block);
        all.kept_bytes_ += size;
        return;
      }
    }
    std::free(block);
  }

  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> kept_;  // by size
  std::size_t kept_bytes_ = 0;
};

}  // namespace

at::Tensor empty_recycled(at::IntArrayRef shape, const at::TensorOptions& options) {
  std::size_t bytes = options.dtype().itemsize();
  for (const auto size : shape) bytes *= static_cast<std::size_t>(size);
  if (bytes < kSmall || options.device().type() != c10::DeviceType::CPU) return at::empty(shape, options);
  at::Tensor fresh =
      at::detail::empty_generic(shape, &Recycler::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                c10::typeMetaToScalarType(options.dtype()), std::nullopt);
  // tests: an old result must not pass for a new one
  if (std::getenv("PYBILEVEL_POISON") != nullptr) fresh.fill_(std::numeric_limits<double>::quiet_NaN());
  return fresh;
}

}  // namespace pb
