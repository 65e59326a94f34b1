// Scratch memory of one team: laid out by the code that uses it, sized by running that code on an empty arena.
#pragma once

#include "core/portable.hpp"

namespace pb {

class Arena {
 public:
  static constexpr Index kAlign = 64;  // bytes

  PB_HD explicit Arena(void* base = nullptr) : base_(static_cast<unsigned char*>(base)) {}

  // Reserves n elements, 64-byte aligned; the contents are undefined.
  template <class T>
  PB_HD T* take(Index n) {
    T* const p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += round_up(n * static_cast<Index>(sizeof(T)), kAlign);
    return p;
  }

  PB_HD Index used() const { return used_; }  // bytes

 private:
  unsigned char* base_;
  Index used_ = 0;
};

}  // namespace pb
