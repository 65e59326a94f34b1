// Scratch memory of one team: laid out by the code that uses it, sized by running that code on an empty arena.
#pragma once

#include "core/portable.hpp"

namespace pb {

template <class T>
class Arena {
 public:
  static constexpr Index kAlign = 64 / sizeof(T);

  PB_HD explicit Arena(T* base = nullptr) : base_(base) {}

  // Reserves n scalars, 64-byte aligned; the contents are undefined.
  PB_HD T* take(Index n) {
    T* p = base_ ? base_ + used_ : nullptr;
    used_ += round_up(n, kAlign);
    return p;
  }

  PB_HD Index used() const { return used_; }

 private:
  T* base_;
  Index used_ = 0;
};

}  // namespace pb
