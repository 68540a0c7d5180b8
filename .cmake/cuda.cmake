# CUDA is optional. Where its toolkit is, libbaton_cuda.so is built: a module that the programs load when a GPU is
# asked for. Where it is not, the programs are the same, and say so when a GPU is asked for.
set(BATON_CUDA AUTO CACHE STRING "Build the CUDA module: ON, OFF, or AUTO (if the toolkit is there)")
set_property(CACHE BATON_CUDA PROPERTY STRINGS AUTO ON OFF)

if(BATON_CUDA STREQUAL "ON")
  find_package(CUDAToolkit REQUIRED)
elseif(BATON_CUDA STREQUAL "AUTO")
  find_package(CUDAToolkit QUIET)
endif()

if(CUDAToolkit_FOUND AND NOT BATON_CUDA STREQUAL "OFF")
  set(BATON_CUDA_FOUND TRUE)
  message(STATUS "CUDA ${CUDAToolkit_VERSION}: building the CUDA module")
else()
  set(BATON_CUDA_FOUND FALSE)
  message(STATUS "CUDA: not built")
endif()
