// Floor 5: the Python module pybilevel._C. Every part with bindings has its csrc/module_<part>.cpp, declared
// and called here. No torch headers: the operators of csrc/ops register themselves with torch when this
// library is loaded.

#include <pybind11/pybind11.h>

#include "cpu/dispatch.hpp"
#include "driver/any_optimizer.hpp"
#include "driver/linear_variant.hpp"
#include "driver/mlp_variant.hpp"
#include "ops/twice.hpp"

namespace py = pybind11;

namespace pb {

void bind_plans(py::module_& m);  // module_plans.cpp

namespace {

/// What a header tells of its optimizer: {"settings": [name or "", ...], "flags": [...], "buffers": [(name, needs), ...],
/// "linear"}.
py::dict describe(const OptimizerInfo& row) {
  py::list settings, flags, buffers;
  for (const auto name : row.settings) settings.append(name);
  for (const auto name : row.flags) {
    if (!name.empty()) flags.append(name);
  }
  for (const BufferInfo& buffer : row.buffers) {
    if (!buffer.name.empty()) buffers.append(py::make_tuple(buffer.name, buffer.needs));
  }
  py::dict told;
  told["settings"] = settings;
  told["flags"] = flags;
  told["buffers"] = buffers;
  told["linear"] = row.linear;
  return told;
}

/// {"problems": [(loss, coordinates), ...], "activations": [name, ...], "optimizers": {name: description}}: what
/// registry.def makes, in its order.
py::dict registry() {
  py::list problems;
  py::dict optimizers;
  for (std::size_t loss = 0; loss < std::size(kLosses); ++loss) {
    for (std::size_t i = 0; i < std::size(kCoordinates); ++i) {
      if (!fit(static_cast<LinearLoss>(loss), static_cast<Coordinates>(i))) continue;
      problems.append(py::make_tuple(kLosses[loss], kCoordinates[i]));
    }
  }
  for (std::size_t i = 0; i < std::size(kOptimizers); ++i) {
    optimizers[py::str(kOptimizers[i].data(), kOptimizers[i].size())] = describe(kOptimizerInfo[i]);
  }
  py::list activations;
  for (const auto activation : kActivations) activations.append(activation);
  py::dict rows;
  rows["problems"] = problems;
  rows["activations"] = activations;
  rows["optimizers"] = optimizers;
  return rows;
}

/// The instruction sets that the CPU kernels were compiled for and this processor runs, the widest last.
py::list instruction_sets() {
  py::list names;
  for (const LinearKernels* kernels : runnable_kernels()) names.append(kernels->isa);
  return names;
}

/// Bytes of a SIMD pack of the kernels that this processor runs: rows are padded to whole packs.
int pack_bytes() { return cpu_kernels().pack_bytes; }

/// How this library was built: what a bug report and a benchmark result need to state.
py::dict build_info() {
  py::dict info;
  info["version"] = PB_VERSION;
  info["compiler"] = PB_COMPILER;
  info["isa"] = instruction_sets();
  info["isa_in_use"] = cpu_kernels().isa;
  info["cuda"] = static_cast<bool>(PB_WITH_CUDA);
  info["cuda_compiler"] = PB_CUDA_COMPILER;
  info["cuda_architectures"] = PB_CUDA_ARCHITECTURES;
  info["torch"] = PB_TORCH_VERSION;
  info["torch_cuda"] = static_cast<bool>(PB_WITH_TORCH_CUDA);
  return info;
}

}  // namespace
}  // namespace pb

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of pybilevel.";
  m.def("build_info", &pb::build_info, "Versions, instruction sets and CUDA state of this build.");
  m.def("pack_bytes", &pb::pack_bytes, "Bytes of a SIMD pack of the CPU kernels in use.");
  m.def("registry", &pb::registry, "The problems and optimizers with native kernels.");
  m.attr("DIFFERENTIATED_TWICE") = pb::kDifferentiatedTwice;
  pb::bind_plans(m);
}
