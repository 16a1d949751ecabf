# Finds LibTorch without asking for CUDA: the CPU libraries of a CUDA build are enough to train on a CPU.
#
# Looks in, in this order: Torch_DIR, CMAKE_PREFIX_PATH, the Python environment that scripts/setup made.
# Defines the target LibTorch::LibTorch and LibTorch_VERSION, LibTorch_LIBRARY_DIR.
set(_hints)
if(Torch_DIR)  # .../share/cmake/Torch -> ...
  get_filename_component(_torch_root "${Torch_DIR}/../../.." ABSOLUTE)
  list(APPEND _hints "${_torch_root}")
endif()
foreach(_prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND _hints "${_prefix}" "${_prefix}/torch" "${_prefix}/../..")
endforeach()
if(NEEDLE_PYTHON_ENV)
  file(GLOB _env_torch "${NEEDLE_PYTHON_ENV}/lib/python3*/site-packages/torch")
  list(APPEND _hints ${_env_torch})
endif()

find_path(LibTorch_INCLUDE_DIR NAMES torch/csrc/api/include/torch/torch.h
          HINTS ${_hints} PATH_SUFFIXES include NO_DEFAULT_PATH)
if(LibTorch_INCLUDE_DIR)
  get_filename_component(LibTorch_ROOT "${LibTorch_INCLUDE_DIR}" DIRECTORY)
endif()
find_library(LibTorch_C10_LIBRARY NAMES c10 HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_CPU_LIBRARY NAMES torch_cpu HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
# The version stands as three numbers in one of two headers, by release.
foreach(_header IN ITEMS torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
  if(NOT LibTorch_VERSION AND EXISTS "${LibTorch_INCLUDE_DIR}/${_header}")
    file(STRINGS "${LibTorch_INCLUDE_DIR}/${_header}" _lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
    string(REGEX REPLACE "[^0-9;]" "" _numbers "${_lines}")
    string(REPLACE ";" "." LibTorch_VERSION "${_numbers}")
  endif()
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "run scripts/setup, or give Torch_DIR or CMAKE_PREFIX_PATH, or configure with -DNEEDLE_BUILD_TRAINING=OFF")

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  get_filename_component(LibTorch_LIBRARY_DIR "${LibTorch_CPU_LIBRARY}" DIRECTORY)
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  target_include_directories(LibTorch::LibTorch SYSTEM INTERFACE
    "${LibTorch_INCLUDE_DIR}" "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include")
  target_link_libraries(LibTorch::LibTorch INTERFACE "${LibTorch_CPU_LIBRARY}" "${LibTorch_C10_LIBRARY}")
  target_compile_definitions(LibTorch::LibTorch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)

  # at::parallel_for in our own files is serial without OpenMP. One runtime must serve all: LibTorch's own if it ships one.
  file(GLOB LibTorch_OPENMP_LIBRARY "${LibTorch_LIBRARY_DIR}/libgomp*.so*")
  if(LibTorch_OPENMP_LIBRARY)
    target_compile_options(LibTorch::LibTorch INTERFACE -fopenmp)
    target_link_libraries(LibTorch::LibTorch INTERFACE "${LibTorch_OPENMP_LIBRARY}")
  else()
    find_package(OpenMP REQUIRED)
    target_link_libraries(LibTorch::LibTorch INTERFACE OpenMP::OpenMP_CXX)
  endif()
endif()
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_C10_LIBRARY LibTorch_CPU_LIBRARY)
