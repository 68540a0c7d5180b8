# CUDA is optional. Where its toolkit is, libbaton_cuda.so is built: a module that the programs load when a GPU is
# asked for. Where it is not, the programs are the same, and say so when a GPU is asked for.
set(BATON_CUDA AUTO CACHE STRING "Build the CUDA module: ON, OFF, or AUTO (if the toolkit is there)")
set_property(CACHE BATON_CUDA PROPERTY STRINGS AUTO ON OFF)

if(BATON_CUDA STREQUAL "ON")
  find_package(CUDAToolkit 13 REQUIRED)
elseif(BATON_CUDA STREQUAL "AUTO")
  find_package(CUDAToolkit 13 QUIET)
endif()

set(BATON_CUDA_FOUND FALSE)
if(CUDAToolkit_FOUND AND NOT BATON_CUDA STREQUAL "OFF")
  set(BATON_CUDA_ARCHITECTURES "90a-real" CACHE STRING "GPUs to compile for, as CMAKE_CUDA_ARCHITECTURES")
  set(CMAKE_CUDA_ARCHITECTURES ${BATON_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  # A toolkit without a compiler, or one that does not go with the host's, is none.
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER OR BATON_CUDA STREQUAL "ON")
    set(BATON_CUDA_FOUND TRUE)
  endif()
endif()

if(BATON_CUDA_FOUND)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
  enable_language(CUDA)
  # CMake 3.25 does not know how this compiler is told.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  string(APPEND CMAKE_CUDA_FLAGS " --expt-relaxed-constexpr -lineinfo")
  # Of NCCL only the header is needed: the module loads the library when several GPUs are asked for.
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  message(STATUS "CUDA ${CUDAToolkit_VERSION}: building the CUDA module for ${BATON_CUDA_ARCHITECTURES}")
else()
  message(STATUS "CUDA: not built")
endif()
