// The torch operators of one step of an inner optimizer over all parameter tensors at once, and of its pullback.
//
//   pybilevel::optimizer_step       w and buffers after the step
//   pybilevel::optimizer_pullback   cotangents of w, buffers, gradient and settings before it
//   pybilevel::optimizer_node       the step as a node of autograd's graph, whose backward is the pullback
//
// pybilevel/ops/optimizers.py documents the arguments. CPU; no autograd but that of the node, no fake implementation: the
// engine calls them where neither is needed.
#include "cpu/optimizer.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/dispatch.hpp"
#include "driver/any_optimizer.hpp"

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile csrc/ops with -fopenmp: at::parallel_for is a header, and would run serially"
#endif

namespace pb {
namespace {

using at::Tensor;
using Settings = c10::List<std::optional<Tensor>>;

void run_on_torch_threads(Index count, Parallel::Body body, void* context) {
  at::parallel_for(0, count, 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) body(context, i);
  });
}

// The kernels of the instruction set in use.
const OptimizerKernels& kernels() {
#if PB_X86
  const std::string_view isa = cpu_kernels().isa;
  if (isa == "avx512") return optimizer_kernels_avx512;
  if (isa == "avx2") return optimizer_kernels_avx2;
#endif
  return optimizer_kernels_baseline;
}

// The params of one step; `values` are what they point to.
template <class T>
OptimizerParams<T> params_of(const Settings& settings, std::string_view optimizer, Index flags, Index start,
                             T (&values)[kMaxSettings]) {
  const auto row = parse<InnerOptimizer>("optimizer", optimizer, kOptimizers);
  TORCH_CHECK_VALUE(settings.size() == kMaxSettings, "pybilevel: settings must have ", kMaxSettings,
                    " entries");
  OptimizerParams<T> params;
  params.row = static_cast<int>(row);
  params.flags = static_cast<unsigned>(flags);
  params.start = start;
  unsigned present = 0;
  for (int i = 0; i < kMaxSettings; ++i) {
    const std::optional<Tensor> setting = settings.get(i);
    TORCH_CHECK_VALUE(setting || i >= info(row).required, "pybilevel: ", optimizer, " needs the setting ",
                      info(row).settings[i]);
    if (!setting) continue;
    TORCH_CHECK_VALUE(setting->numel() == 1, "pybilevel: ", info(row).settings[i],
                      " must have one value, got ", setting->sizes());
    values[i] = setting->template item<T>();
    params.settings[i].value = {&values[i], 0, 0};
    present |= 1u << i;
  }
  params.buffers = count_buffers(info(row), present, params.flags);
  return params;
}

// The contiguous tensors of a list, each of the size of its leaf: `each` of them a leaf.
std::vector<Tensor> parts(const char* name, at::TensorList list, at::TensorList w, Index each) {
  TORCH_CHECK_VALUE(static_cast<Index>(list.size()) == each * static_cast<Index>(w.size()),
                    "pybilevel: ", name, " must have ", each, " for each of ", w.size(), " parameters, got ",
                    list.size());
  std::vector<Tensor> found;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Tensor &part = list[i], &like = w[i / each];
    TORCH_CHECK_VALUE(
        part.sizes() == like.sizes() && part.scalar_type() == w[0].scalar_type() && part.is_cpu(),
        "pybilevel: ", name, "[", i, "] must be ", like.sizes(), " of ", w[0].scalar_type(),
        " on the CPU, got ", part.sizes(), " of ", part.scalar_type(), " on ", part.device());
    found.push_back(part.contiguous());
  }
  return found;
}

std::vector<Tensor> empty_parts(at::TensorList w, Index each) {
  std::vector<Tensor> found;
  for (const Tensor& like : w) {
    for (Index k = 0; k < each; ++k) found.push_back(at::empty(like.sizes(), like.options()));
  }
  return found;
}

// Points part 0 of every leaf to w, and the others to its buffers.
template <class T, class F>
void point(std::vector<OptimizerLeaf<T>>& leaves, const std::vector<Tensor>& w,
           const std::vector<Tensor>& buffers, F&& place) {
  const std::size_t each = leaves.empty() ? 0 : buffers.size() / leaves.size();
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    place(leaves[i], 0, w[i].data_ptr<T>());
    for (std::size_t k = 0; k < each; ++k) place(leaves[i], 1 + k, buffers[i * each + k].data_ptr<T>());
  }
}

// What both operators take.
template <class T>
struct Step {
  T values[kMaxSettings];
  OptimizerParams<T> params;
  std::vector<Tensor> w, g, buffers;
  std::vector<OptimizerLeaf<T>> leaves;

  Step(at::TensorList w_list, at::TensorList g_list, at::TensorList buffer_list, const Settings& settings,
       std::string_view optimizer, Index flags, Index start)
      : params(params_of(settings, optimizer, flags, start, values)),
        w(parts("w", w_list, w_list, 1)),
        g(parts("g", g_list, w_list, 1)),
        buffers(parts("buffers", buffer_list, w_list, params.buffers)),
        leaves(w.size()) {
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      leaves[i].size = w[i].numel();
      leaves[i].g = g[i].template const_data_ptr<T>();
    }
    point(leaves, w, buffers, [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.state[k] = p; });
  }
};

template <class T>
std::vector<Tensor> run_step(at::TensorList w, at::TensorList g, at::TensorList buffers,
                             const Settings& settings, std::string_view optimizer, Index flags, Index start) {
  Step<T> step(w, g, buffers, settings, optimizer, flags, start);
  std::vector<Tensor> w_next = empty_parts(w, 1), buffers_next = empty_parts(w, step.params.buffers);
  point(step.leaves, w_next, buffers_next,
        [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.next[k] = p; });
  kernels().in<T>().step(step.params, step.leaves.data(), static_cast<Index>(w.size()),
                         {run_on_torch_threads});
  w_next.insert(w_next.end(), buffers_next.begin(), buffers_next.end());
  return w_next;
}

template <class T>
std::vector<Tensor> run_pullback(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                 at::TensorList w_bar, at::TensorList buffers_bar, const Settings& settings,
                                 std::string_view optimizer, Index flags, Index start) {
  Step<T> step(w, g, buffers, settings, optimizer, flags, start);
  const std::vector<Tensor> w_given = parts("w_bar", w_bar, w, 1),
                            buffers_given = parts("buffers_bar", buffers_bar, w, step.params.buffers);
  point(step.leaves, w_given, buffers_given,
        [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.next_bar[k] = p; });
  std::vector<Tensor> found = empty_parts(w, 1), buffers_found = empty_parts(w, step.params.buffers),
                      g_found = empty_parts(w, 1);
  point(step.leaves, found, buffers_found,
        [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.bar[k] = p; });
  for (std::size_t i = 0; i < step.leaves.size(); ++i)
    step.leaves[i].g_bar = g_found[i].template data_ptr<T>();
  double bars[kMaxSettings];
  kernels().in<T>().pullback(step.params, step.leaves.data(), static_cast<Index>(w.size()), bars,
                             {run_on_torch_threads});
  for (const auto* more : {&buffers_found, &g_found}) found.insert(found.end(), more->begin(), more->end());
  Tensor settings_bar = at::empty({kMaxSettings}, w[0].options());
  for (int i = 0; i < kMaxSettings; ++i) settings_bar.template data_ptr<T>()[i] = static_cast<T>(bars[i]);
  found.push_back(settings_bar);
  return found;
}

bool in_double(at::TensorList w) {
  TORCH_CHECK_VALUE(!w.empty(), "pybilevel: w has no parameters");
  const auto type = w[0].scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "pybilevel: w is ", type,
                   "; fused operators take float32 or float64");
  return type == at::kDouble;
}

std::vector<Tensor> optimizer_step(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                   const Settings& settings, std::string_view optimizer, Index flags,
                                   Index start) {
  return in_double(w) ? run_step<double>(w, g, buffers, settings, optimizer, flags, start)
                      : run_step<float>(w, g, buffers, settings, optimizer, flags, start);
}

std::vector<Tensor> optimizer_pullback(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                       at::TensorList w_bar, at::TensorList buffers_bar,
                                       const Settings& settings, std::string_view optimizer, Index flags,
                                       Index start) {
  return in_double(w)
             ? run_pullback<double>(w, g, buffers, w_bar, buffers_bar, settings, optimizer, flags, start)
             : run_pullback<float>(w, g, buffers, w_bar, buffers_bar, settings, optimizer, flags, start);
}

// A node from (w, g, buffers) to w and buffers after the step. Its backward leaves the cotangents of the settings in
// row t of `record` [steps, kMaxSettings]: as gradients of their own they would cost a node each.
struct StepNode : torch::autograd::Function<StepNode> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = std::vector<Tensor>;

  static Tensors forward(Context* context, at::TensorList tensors, const Settings& settings,
                         const std::string& optimizer, Index flags, Index start, Index count,
                         const Tensor& record, Index t) {
    context->save_for_backward(tensors.vec());
    auto& kept = context->saved_data;
    kept["settings"] = settings;
    kept["optimizer"] = optimizer;
    kept["numbers"] = std::vector<std::int64_t>{flags, start, count, t};
    kept["record"] = record;
    const auto n = static_cast<std::size_t>(count);
    return optimizer_step(tensors.slice(0, n), tensors.slice(n, n), tensors.slice(2 * n), settings, optimizer,
                          flags, start);
  }

  static Tensors backward(Context* context, const Tensors& bars) {
    auto& kept = context->saved_data;
    const auto numbers = kept["numbers"].toIntVector();
    const Tensors saved = context->get_saved_variables();
    const at::TensorList tensors(saved), given(bars);
    const auto n = static_cast<std::size_t>(numbers[2]);
    Tensors found = optimizer_pullback(tensors.slice(0, n), tensors.slice(n, n), tensors.slice(2 * n),
                                       given.slice(0, n), given.slice(n), kept["settings"].to<Settings>(),
                                       kept["optimizer"].toStringRef(), numbers[0], numbers[1]);
    kept["record"].toTensor().select(0, numbers[3]).copy_(found.back());
    // the operator gives w, buffers, g
    const auto first = found.begin(), g = found.end() - 1 - static_cast<std::ptrdiff_t>(n);
    Tensors ordered(first, first + static_cast<std::ptrdiff_t>(n));
    ordered.insert(ordered.end(), g, found.end() - 1);
    ordered.insert(ordered.end(), first + static_cast<std::ptrdiff_t>(n), g);
    ordered.resize(ordered.size() + 7);  // none for what are no tensors of the graph
    return ordered;
  }
};

std::vector<Tensor> optimizer_node(at::TensorList tensors, const Settings& settings,
                                   std::string_view optimizer, Index flags, Index start, Index count,
                                   const Tensor& record, Index t) {
  TORCH_CHECK_VALUE(count > 0 && 2 * count <= static_cast<Index>(tensors.size()),
                    "pybilevel: tensors must be w, g and buffers of ", count, " parameters, got ",
                    tensors.size());
  return StepNode::apply(tensors, settings, std::string(optimizer), flags, start, count, record, t);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def(
      "optimizer_step(Tensor[] w, Tensor[] g, Tensor[] buffers, Tensor?[] settings, str optimizer, int "
      "flags, "
      "int start) -> Tensor[]");
  m.def(
      "optimizer_pullback(Tensor[] w, Tensor[] g, Tensor[] buffers, Tensor[] w_bar, Tensor[] buffers_bar, "
      "Tensor?[] settings, str optimizer, int flags, int start) -> Tensor[]");
  m.def(
      "optimizer_node(Tensor[] tensors, Tensor?[] settings, str optimizer, int flags, int start, int count, "
      "Tensor record, int t) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(pybilevel, CompositeImplicitAutograd, m) { m.impl("optimizer_node", &optimizer_node); }

TORCH_LIBRARY_IMPL(pybilevel, CPU, m) {
  m.impl("optimizer_step", &optimizer_step);
  m.impl("optimizer_pullback", &optimizer_pullback);
}

}  // namespace pb
