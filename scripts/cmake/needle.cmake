# Helpers of this project's build: warnings, sanitizers, needle_add_library, needle_add_test, needle_add_app.

add_library(needle_warnings INTERFACE)
add_library(needle::warnings ALIAS needle_warnings)
target_compile_options(needle_warnings INTERFACE -Wall -Wextra -Wshadow -Wconversion
                       -Wno-missing-field-initializers)  # designated initialisers leave defaults out on purpose
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(needle_warnings INTERFACE -Wno-restrict)  # false alarms on string + string, GCC bug 105651
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Precompiled headers need these three; paths are made relative, so that two checkouts share the cache.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
      "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" "CCACHE_NOHASHDIR=1" "${CCACHE_PROGRAM}")
endif()

if(NEEDLE_SANITIZE)
  add_compile_options(-fsanitize=${NEEDLE_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${NEEDLE_SANITIZE})
endif()

# The precompiled <torch/torch.h>: 20 s for each translation unit become 5.
function(needle_add_torch_pch)
  file(WRITE "${CMAKE_BINARY_DIR}/torch_pch.cpp" "// Only carries the precompiled header.\n")
  add_library(needle_torch_pch STATIC "${CMAKE_BINARY_DIR}/torch_pch.cpp")
  target_link_libraries(needle_torch_pch PUBLIC LibTorch::LibTorch)
  target_precompile_headers(needle_torch_pch PRIVATE <torch/torch.h>)
endfunction()

# Compiles several sources of a target as one: each pays for LibTorch's templates once. Presets switch it on.
option(NEEDLE_FAST_BUILD "Bundle the sources that see LibTorch, optimise tests lightly: for builds from scratch" OFF)

# What UNITY_BUILD does, but the bundles name their sources from the top of the tree, as #include "needle/model/norm.cpp", so that
# ccache knows them again in another checkout. Sources with SKIP_UNITY_BUILD_INCLUSION stay alone; set it before the target is made.
function(_needle_bundle_sources target)
  get_target_property(sources ${target} SOURCES)
  set(bundled "")
  foreach(source IN LISTS sources)
    get_source_file_property(alone "${source}" SKIP_UNITY_BUILD_INCLUSION)
    if(NOT alone AND NOT IS_ABSOLUTE "${source}")
      list(APPEND bundled "${source}")
    endif()
  endforeach()
  set_source_files_properties(${bundled} PROPERTIES HEADER_FILE_ONLY ON)
  file(RELATIVE_PATH folder "${CMAKE_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")
  set(number 0)
  while(bundled)
    list(SUBLIST bundled 0 6 batch)
    list(REMOVE_ITEM bundled ${batch})
    list(TRANSFORM batch REPLACE "(.+)" "#include \"${folder}/\\1\"\n")
    list(JOIN batch "" text)
    set(bundle "${CMAKE_CURRENT_BINARY_DIR}/${target}_bundle_${number}.cpp")
    file(CONFIGURE OUTPUT "${bundle}" CONTENT "${text}" @ONLY)  # touches the file only where it differs
    target_sources(${target} PRIVATE "${bundle}")
    math(EXPR number "${number} + 1")
  endwhile()
endfunction()

function(_needle_use_torch target)
  if(NEEDLE_FAST_BUILD)
    _needle_bundle_sources(${target})
  endif()
  target_link_libraries(${target} PUBLIC LibTorch::LibTorch)
  target_precompile_headers(${target} REUSE_FROM needle_torch_pch)
  # fmt 12 lies among LibTorch's headers; ours come through needle/core/format.h, which hides it.
  target_compile_options(${target} PRIVATE -Wno-conversion)
  # Executables would get -fPIE, with which the precompiled header, made with -fPIC, is not used.
  target_compile_options(${target} PRIVATE $<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:-fPIC>)
endfunction()

# needle_add_library(core SOURCES a.cpp [LINKS ...] [PRIVATE_LINKS ...] [TORCH])
# One target needle_<name>, alias needle::<name>. LINKS are public.
function(needle_add_library name)
  cmake_parse_arguments(ARG "TORCH" "" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  add_library(needle_${name} STATIC ${ARG_SOURCES})
  add_library(needle::${name} ALIAS needle_${name})
  target_include_directories(needle_${name} PUBLIC "${CMAKE_SOURCE_DIR}")
  # So that a program which embeds the engine can leave out what it does not call (--gc-sections).
  target_compile_options(needle_${name} PRIVATE -ffunction-sections -fdata-sections)
  target_link_libraries(needle_${name} PUBLIC ${ARG_LINKS} PRIVATE ${ARG_PRIVATE_LINKS} needle::warnings)
  if(ARG_TORCH)
    _needle_use_torch(needle_${name})
  endif()
endfunction()

# Sources that run once a file or a set of tools, not once a token: compiled for size. The engine is embedded.
function(needle_compile_for_size)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:-Os>")
endfunction()

# needle_add_test(core SOURCES a_test.cpp [LINKS ...] [LABEL unit] [TORCH])
# One binary a library; suites whose name contains Golden get the label golden, Integration the label integration.
function(needle_add_test name)
  cmake_parse_arguments(ARG "TORCH" "LABEL;TIMEOUT" "SOURCES;LINKS" ${ARGN})
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set(target needle_${name}_test)
  add_executable(${target} ${ARG_SOURCES})
  target_link_libraries(${target} PRIVATE ${ARG_LINKS} needle::test_support GTest::gmock GTest::gtest_main
                        needle::warnings)
  if(ARG_TORCH)
    _needle_use_torch(${target})
  elseif(NEEDLE_FAST_BUILD)
    target_compile_options(${target} PRIVATE -O1)
  endif()
  include(GoogleTest)
  foreach(kind IN ITEMS "${ARG_LABEL}|-*Golden*:*Integration*" "golden|*Golden*" "integration|*Integration*")
    string(REPLACE "|" ";" kind "${kind}")
    list(GET kind 0 label)
    list(GET kind 1 filter)
    # One variable alone: CMake 3.25 cuts a list here at its first semicolon (tests/build/test_environment_test.py).
    gtest_discover_tests(${target} TEST_FILTER "${filter}" TEST_PREFIX "${name}." DISCOVERY_MODE PRE_TEST
                         DISCOVERY_TIMEOUT 120 TEST_LIST needle_${name}_${label}_tests
                         PROPERTIES LABELS ${label} TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT OMP_NUM_THREADS=1)
  endforeach()
endfunction()

# needle_add_app(needle_run SOURCES main.cpp LINKS ... [TORCH]): the binary is named with dashes, needle-run,
# the target needle_run_app: needle_data, needle_train, ... are libraries.
function(needle_add_app name)
  cmake_parse_arguments(ARG "TORCH" "" "SOURCES;LINKS" ${ARGN})
  set(target "${name}_app")
  add_executable(${target} ${ARG_SOURCES})
  string(REPLACE "_" "-" output "${name}")
  set_target_properties(${target} PROPERTIES OUTPUT_NAME "${output}")
  target_link_libraries(${target} PRIVATE ${ARG_LINKS} CLI11::CLI11 needle::warnings)
  if(ARG_TORCH)
    _needle_use_torch(${target})
  endif()
endfunction()
