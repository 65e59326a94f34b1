# Reads csrc/registry.def, the only list of problems and optimizers, and refuses a row whose headers are missing.

set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/registry.def)
file(STRINGS csrc/registry.def rows REGEX "^PB_(PROBLEM|OPTIMIZER)\\(")

foreach(row IN LISTS rows)
  if(row MATCHES "^PB_PROBLEM\\(([a-z0-9_]+), ([a-z0-9_]+)\\)$")
    set(headers losses/${CMAKE_MATCH_1}.hpp problems/linear_${CMAKE_MATCH_2}.hpp)
  elseif(row MATCHES "^PB_OPTIMIZER\\(([a-z0-9_]+)\\)$")
    set(headers optimizers/${CMAKE_MATCH_1}.hpp)
  else()
    message(FATAL_ERROR "csrc/registry.def: cannot read '${row}'. Write one row a line: PB_PROBLEM(loss, coordinates) "
      "or PB_OPTIMIZER(name).")
  endif()
  foreach(header IN LISTS headers)
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/${header})
      message(FATAL_ERROR "csrc/registry.def: '${row}' needs csrc/${header}, which is missing.")
    endif()
  endforeach()
endforeach()
