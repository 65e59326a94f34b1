# Reads csrc/registry.def, the only list of losses, coordinates, activations and optimizers, and refuses a row whose
# header is missing.

set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/registry.def)
file(STRINGS csrc/registry.def rows REGEX "^PB_[A-Z]+\\(")

foreach(row IN LISTS rows)
  if(NOT row MATCHES "^PB_(LOSS|COORDINATES|ACTIVATION|OPTIMIZER)\\(([a-z0-9_]+), ([A-Z][A-Za-z0-9]*)(, [a-z0-9_]+)?\\)$")
    message(FATAL_ERROR "csrc/registry.def: cannot read '${row}'. Write one row a line: PB_LOSS(name, Type), "
      "PB_COORDINATES(name, Type, losses), "
      "PB_ACTIVATION(name, Type) or PB_OPTIMIZER(name, Type).")
  endif()
  if(CMAKE_MATCH_1 STREQUAL "LOSS")
    set(header losses/${CMAKE_MATCH_2}.hpp)
  elseif(CMAKE_MATCH_1 STREQUAL "ACTIVATION")
    set(header activations/${CMAKE_MATCH_2}.hpp)
  elseif(CMAKE_MATCH_1 STREQUAL "COORDINATES")
    set(header problems/linear_${CMAKE_MATCH_2}.hpp)
  else()
    set(header optimizers/${CMAKE_MATCH_2}.hpp)
  endif()
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/${header})
    message(FATAL_ERROR "csrc/registry.def: '${row}' needs csrc/${header}, which is missing.")
  endif()
endforeach()
