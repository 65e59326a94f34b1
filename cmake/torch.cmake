# Asks the installed torch where it is and how it was built. find_package(Torch) is avoided on purpose: it demands
# a whole CUDA toolkit and overrides the CUDA architectures.
#
# Defines: pb_torch (INTERFACE target), PB_TORCH_VERSION, PB_TORCH_CUDA ("" or torch's CUDA version).

execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, int(torch.compiled_with_cxx11_abi()), torch.version.cuda or '', sep=';')"
  OUTPUT_VARIABLE answer RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
if(failed)
  message(FATAL_ERROR "torch cannot be imported by ${Python_EXECUTABLE}. Install it first "
    "(pip install -c constraints.txt torch), then install pybilevel with --no-build-isolation.")
endif()
list(GET answer 0 torch_dir)
list(GET answer 1 PB_TORCH_VERSION)
list(GET answer 2 torch_cxx11_abi)
list(GET answer 3 PB_TORCH_CUDA)

function(pb_find_torch_library name)
  find_library(PB_LIB_${name} ${name} PATHS ${torch_dir}/lib NO_DEFAULT_PATH NO_CACHE REQUIRED)
  target_link_libraries(pb_torch INTERFACE ${PB_LIB_${name}})
endfunction()

add_library(pb_torch INTERFACE)
target_include_directories(pb_torch SYSTEM INTERFACE
  ${torch_dir}/include ${torch_dir}/include/torch/csrc/api/include)
target_compile_definitions(pb_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi})
foreach(name IN ITEMS c10 torch_cpu torch)
  pb_find_torch_library(${name})
endforeach()
message(STATUS "torch ${PB_TORCH_VERSION} in ${torch_dir} (CUDA: '${PB_TORCH_CUDA}')")
