// Bindings of core/plan.hpp and core/plan_machine.hpp. Python sees a plan as a bytearray of 32-bit integers: a plan of
// many steps has some 4 ops a step, and a list would take 36 bytes for each.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <span>

#include "core/plan.hpp"
#include "core/plan_machine.hpp"

namespace py = pybind11;

namespace pb {
namespace {

py::bytearray packed(const Ops& ops) {
  return py::bytearray(reinterpret_cast<const char*>(ops.data()), ops.size() * sizeof(Op));
}

std::span<const Op> unpacked(const py::bytearray& ops) {
  const auto size = static_cast<std::size_t>(PyByteArray_GET_SIZE(ops.ptr()));
  if (size % sizeof(Op) != 0) throw py::value_error("a packed plan has 4 bytes an op");
  return {reinterpret_cast<const Op*>(PyByteArray_AS_STRING(ops.ptr())), size / sizeof(Op)};
}

}  // namespace

void bind_plans(py::module_& m) {
  py::class_<PlanReport>(m, "PlanReport", "What a valid plan costs, counted by the abstract machine.")
      .def_readonly("forward_ops", &PlanReport::forward_ops)
      .def_readonly("forward_advances", &PlanReport::forward_advances)
      .def_readonly("advances", &PlanReport::advances)
      .def_readonly("undone", &PlanReport::undone)
      .def_readonly("saves", &PlanReport::saves)
      .def_readonly("peak_slots", &PlanReport::peak_slots);

  m.def("store_all", [](std::int64_t steps) { return packed(store_all(steps)); }, py::arg("steps"));
  m.def(
      "revolve", [](std::int64_t steps, std::int64_t slots) { return packed(revolve(steps, slots)); },
      py::arg("steps"), py::arg("slots"));
  m.def(
      "periodic", [](std::int64_t steps, std::int64_t every) { return packed(periodic(steps, every)); },
      py::arg("steps"), py::arg("every"));
  m.def("revolve_advances", &revolve_advances, py::arg("steps"), py::arg("slots"));
  m.def("slots_used", [](const py::bytearray& ops) { return slots_used(unpacked(ops)); }, py::arg("ops"));
  m.def("op_text", &op_text, py::arg("op"), "An op in words, such as 'ADVANCE 3'.");
  m.def(
      "check_plan",
      [](const py::bytearray& ops, std::int64_t steps, std::int64_t slots, std::int64_t reversed) {
        return check_plan(unpacked(ops), steps, slots, reversed);
      },
      py::arg("ops"), py::arg("steps"), py::arg("slots"), py::arg("reversed"));
  m.def(
      "trace_plan",
      [](const py::bytearray& ops, std::int64_t steps, std::int64_t slots, std::int64_t reversed) {
        return trace_plan(unpacked(ops), steps, slots, reversed);
      },
      py::arg("ops"), py::arg("steps"), py::arg("slots"), py::arg("reversed"));
}

}  // namespace pb
