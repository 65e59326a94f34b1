// The Team: all that the mathematics knows about the machine.
//
// A team is a group of workers that run one task together: a CPU thread whose lanes are a SIMD pack of rows, a crew of
// CPU threads, a CUDA block, all blocks of a CUDA launch. Its methods are collective: all workers call them, with the
// same arguments, and each ends with a barrier, so that what it wrote is visible to all. No plan and no number of CPU
// threads changes a result.
//
// On CUDA the object that holds the mathematics (LinearTask and its members) exists once, in shared memory of the block
// or in global memory: every worker runs its code, so its members may change only inside a collective, as in
// `team.for_each(1, ...)`, and no worker may read what the next collective changes before it calls it. Lambdas are
// copied into loops: capture what they read in locals, or `this` where it changes nothing.
//
//   Scalar, Lane, kLanes      Lane holds kLanes consecutive scalars (1 on CUDA)
//   kRowCut                   how a pass over the rows of a data set is cut for chunks()
//   Real                      float or double: what tensors hold. Scalar too, but for a team that runs a task per SIMD
//                             lane, where a scalar is a pack with the numbers of several tasks
//   Series<E>, series(b, t)   one number a step of task t, as a scalar: s[step], s.set(step, x)
//   vanishes(x)               whether a scalar is 0
//   Wide, wide()              the same workers, whose scalars are doubles; for all but reduce(), keep() and near()
//   load(p), store(p, lane)   a lane from / to p[0 .. kLanes); static, not collective
//   for_each(n, f)            f(i) for i = 0 .. n-1, independent
//   for_pairs(m, n, f)        f(i, j) for i = 0 .. m-1 and j = 0 .. n-1, independent; j runs fastest
//   for_lanes(n, f)           f(i) for i = 0, kLanes, 2 kLanes ..  < n; buffers are padded to whole lanes
//   reduce<N>(n, out, f)      f(i, Lane (&sums)[N]) adds to the sums, i as in for_lanes; out[N] in fixed order
//   chunks(n, f)              f(member, i) for i = 0 .. n-1; a member is a team itself, chunks may run in parallel
//   keep(x, cut)              optional: rows of x will be read pass after pass, so hold what is possible close to the members
//   near(x, cut, row, count)  optional, of a member, no barrier: those rows, wherever they are held
//   mix(shape, a, b, c)       C[p, q] (+)= sum_r A(p, r) B[r, q]       A by two strides; B, C with contiguous rows
//   row_sums(shape, a, out)   out[p] (+)= sum_q A[p, q]
//   dots(shape, a, b, c)      C(p, r) (+)= sum_q A[p, q] B[r, q]       A, B with contiguous rows; C by two strides
//
// Some have a faster way, and need not:
//
//   transpose(m, n, a, b)     b[j][i] = a[i][j] for i < m, j < n       (core/lanes.hpp has it for all)
//   for_panels(m, n, f)       for_pairs(m, n, f) of a short f          (core/lanes.hpp has it for all)
//   mix_both(shape, t, u, c)  C (+)= both terms; shape.r is not read     (core/lanes.hpp has it for all)
//   gram(n, q, a, c)          C(p, r) = sum_q A[p, q] A[r, q]          (core/lanes.hpp has it for all)
//   fetch(n, p)               p[0 .. n) will be read soon; static
//   labels(p, classes)        p[0 .. kLanes) as a lane, NaN where one is none of the classes; static (all where kLanes > 1)
//   Part, kParts, parts(p)    a scalar is kParts of the scalars of a team Part, whose rows of few classes stay in registers
//                             (problems/dual_few.hpp); p[0] as an array of them; static
//   kTasks, gather(x)         a scalar holds the numbers x[0 .. kTasks) of as many tasks; static
//   kSlotsAreNear             true: a trajectory is read as fast as scratch, so states are worked on where they are stored
#pragma once

#include <concepts>

#include "core/view.hpp"

namespace pb {

// Element (i, j) at data[i * row + j * column].
template <class T>
struct Strided {
  T* data;
  Index row;
  Index column;
};

// One product of a sum of products: sum_r A(p, r) B[r, q].
template <class T>
struct Term {
  Index r;
  Strided<T> a;
  Matrix<T> b;
};

// A pass over rows is cut into chunks of about `chunk` rows at most, each run in blocks of at most `block` rows that take about
// `bytes`; but no more than `most` chunks, and than `few` where their partial sums would take more than `sums` bytes. A sum
// of more than twice `bytes` is read from afar for every block: blocks then have about `tall` rows, if that is not 0. A
// pass that fetches the next block while it reads one a second time takes blocks of about `far` bytes, if that is not 0.
// Chunks are even, to `unit` rows, or, if that is 0, equal and of whole blocks, so that the last ones may be short. The cut
// decides the order of additions: it follows from the sizes and the kind of team, never from its number of workers.
struct RowCut {
  Index bytes, block, chunk, most, few, sums, tall = 0, far = 0, unit = 0;
};

// The cut of one data set where RowCut has no `unit`: chunk i is the rows from i * chunk on, in blocks of `block` rows, the last
// of which may be short. A chunk is whole blocks; the last ones may be empty.
struct RowChunks {
  Index rows, features, chunks, chunk, block;
};

// Sizes of one matrix product (see mix, row_sums and dots above), whether it adds to what is there, and hints to mix:
// C is too large to be found in a cache when it is read next; what is read after B begins `ahead` scalars behind B's begin (0:
// not known). `rounded`: a team may make it in LinearParams::precision.
struct Shape {
  Index p, q, r;
  bool accumulate = false;
  bool stream = false;
  bool rounded = false;
  Index ahead = 0;
};

template <class Team>
concept TeamLike = requires(Team team, typename Team::Scalar* p, typename Team::Lane lane, Shape shape) {
  { Team::kLanes } -> std::convertible_to<Index>;
  { Team::kRowCut } -> std::convertible_to<RowCut>;
  { Team::load(p) } -> std::same_as<typename Team::Lane>;
  Team::store(p, lane);
  team.mix(shape, Strided<const typename Team::Scalar>{}, Matrix<const typename Team::Scalar>{},
           Matrix<typename Team::Scalar>{});
  team.dots(shape, Matrix<const typename Team::Scalar>{}, Matrix<const typename Team::Scalar>{},
            Strided<typename Team::Scalar>{});
  team.row_sums(shape, Matrix<const typename Team::Scalar>{}, p);
};

}  // namespace pb
