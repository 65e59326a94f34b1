// Strided views: kernels see these, never tensors.
#pragma once

#include <type_traits>

#include "core/portable.hpp"

namespace pb {

// A vector with a stride; `data == nullptr` means absent.
template <class T>
struct Vector {
  T* data = nullptr;
  Index stride = 1;

  PB_HD explicit operator bool() const { return data != nullptr; }
  PB_HD T& operator[](Index i) const { return data[i * stride]; }
  PB_HD void set(Index i, T x) const { data[i * stride] = x; }
};

// A matrix whose rows are contiguous.
template <class T>
struct Matrix {
  T* data = nullptr;
  Index row = 0;  // elements from one row to the next

  PB_HD explicit operator bool() const { return data != nullptr; }
  PB_HD T* operator[](Index i) const { return data + i * row; }
  PB_HD operator Matrix<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data, row};
  }
};

// A batch over tasks of [rows, contiguous columns], or of vectors with a stride.
template <class T>
struct Batch {
  T* data = nullptr;
  Index task = 0;  // elements from one task to the next (0: shared by all tasks)
  Index row = 0;   // elements from one row to the next

  PB_HD explicit operator bool() const { return data != nullptr; }
  PB_HD Matrix<T> matrix(Index b) const { return {data ? data + b * task : nullptr, row}; }
  PB_HD Vector<T> vector(Index b) const { return {data ? data + b * task : nullptr, row}; }
};

// Several batches of the same sizes, one after the other.
template <class T>
struct Batches {
  Batch<T> first;
  Index next = 0;  // elements from one batch to the next

  PB_HD explicit operator bool() const { return bool(first); }
  PB_HD Batch<T> operator[](Index i) const {
    return {first.data ? first.data + i * next : nullptr, first.task, first.row};
  }
};

}  // namespace pb
