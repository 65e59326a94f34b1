// Bindings of core/plan.hpp and core/plan_machine.hpp. Python sees a plan as a list of integers.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/plan.hpp"
#include "core/plan_machine.hpp"

namespace py = pybind11;

namespace pb {

void bind_plans(py::module_& m) {
  py::class_<PlanReport>(m, "PlanReport", "What a valid plan costs, counted by the abstract machine.")
      .def_readonly("forward_ops", &PlanReport::forward_ops)
      .def_readonly("forward_advances", &PlanReport::forward_advances)
      .def_readonly("advances", &PlanReport::advances)
      .def_readonly("undone", &PlanReport::undone)
      .def_readonly("saves", &PlanReport::saves)
      .def_readonly("peak_slots", &PlanReport::peak_slots);

  m.def("store_all", &store_all, py::arg("steps"));
  m.def("revolve", &revolve, py::arg("steps"), py::arg("slots"));
  m.def("periodic", &periodic, py::arg("steps"), py::arg("every"));
  m.def("revolve_advances", &revolve_advances, py::arg("steps"), py::arg("slots"));
  m.def("slots_used", &slots_used, py::arg("ops"));
  m.def("op_text", &op_text, py::arg("op"), "An op in words, such as 'ADVANCE 3'.");
  m.def(
      "check_plan",
      [](const Ops& ops, std::int64_t steps, std::int64_t slots, std::int64_t reversed) {
        return check_plan(ops, steps, slots, reversed);
      },
      py::arg("ops"), py::arg("steps"), py::arg("slots"), py::arg("reversed"));
  m.def(
      "trace_plan",
      [](const Ops& ops, std::int64_t steps, std::int64_t slots, std::int64_t reversed) {
        return trace_plan(ops, steps, slots, reversed);
      },
      py::arg("ops"), py::arg("steps"), py::arg("slots"), py::arg("reversed"));
}

}  // namespace pb
