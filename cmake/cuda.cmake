# Decides whether the CUDA kernels are compiled. The three situations:
#   (a) no nvcc, or PYBILEVEL_CUDA=OFF                no CUDA code at all
#   (b) nvcc and a CPU-only torch                     compiled and linked; a CUDA call gives a clean error
#   (c) nvcc and a CUDA torch                         the same, and the stream comes from torch's c10_cuda
#
# Defines: cuda_sources, PB_WITH_CUDA and PB_WITH_TORCH_CUDA (0 or 1), PB_CUDA_COMPILER, PB_CUDA_ARCHITECTURES.

set(PB_WITH_CUDA 0)
set(PB_WITH_TORCH_CUDA 0)
set(PB_CUDA_COMPILER "")
set(PB_CUDA_ARCHITECTURES "")
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)

if(PYBILEVEL_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  set(cuda_wanted ${CMAKE_CUDA_COMPILER})
else()
  set(cuda_wanted ${PYBILEVEL_CUDA})
endif()

if(cuda_wanted AND cuda_sources)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)  # machine code for both, and PTX of the newer for what comes later
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)      # the driver is found at run time; no CUDA library is needed to import
  enable_language(CUDA)
  set(PB_WITH_CUDA 1)
  set(PB_CUDA_COMPILER "${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " PB_CUDA_ARCHITECTURES)
  target_include_directories(pb_torch SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  if(PB_TORCH_CUDA)
    set(PB_WITH_TORCH_CUDA 1)
    pb_find_torch_library(c10_cuda)
  endif()
endif()
message(STATUS "CUDA kernels: ${PB_WITH_CUDA} (PYBILEVEL_CUDA=${PYBILEVEL_CUDA}, nvcc '${PB_CUDA_COMPILER}', "
  "architectures '${PB_CUDA_ARCHITECTURES}', torch's CUDA '${PB_TORCH_CUDA}')")
