# The few words that Baton's CMakeLists.txt files are written in:
#   baton_library(name SOURCES … DEPS … PRIVATE_DEPS …)   a static library baton::name
#   baton_binary(name SOURCES … DEPS …)                   a program in build/<preset>/bin
#   baton_cuda_module(name DIRECTORY … SOURCES … DEPS …)  libbaton_cuda.so in a folder
#   baton_test(name DEPS … LABELS … SOURCES …)            a GoogleTest program, registered with ctest
# A dependency must already be a target; otherwise configuration stops.

add_library(baton_flags INTERFACE)
target_compile_options(baton_flags INTERFACE $<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
  $<$<BOOL:${BATON_WERROR}>:-Werror>
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>
  -ffp-contract=off>)  # A fused multiply-add changes bits; see "Equal bits" in DESIGN_NOTES.md.
if(BATON_SANITIZE)
  target_compile_options(baton_flags INTERFACE -fsanitize=${BATON_SANITIZE} -fno-omit-frame-pointer
                                               -fno-sanitize-recover=all)
  target_link_options(baton_flags INTERFACE -fsanitize=${BATON_SANITIZE})
  if(BATON_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Abseil's flags have a fence, which g++ then warns of. Protobuf's maps have another layout where the macro is
    # defined, and the installed library is built without.
    target_compile_options(baton_flags INTERFACE -Wno-tsan -U__SANITIZE_THREAD__)
  endif()
endif()
if(BATON_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "BATON_FUZZ needs clang, which libFuzzer is a part of: cmake --preset fuzz")
  endif()
  target_compile_options(baton_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(BATON_TIDY)
  find_program(CLANG_TIDY clang-tidy REQUIRED)
endif()

function(_baton_check_deps name)
  foreach(dep IN LISTS ARGN)
    if(NOT TARGET ${dep})
      message(FATAL_ERROR "${name}: '${dep}' is not declared yet. A target may depend only on "
                          "targets above it in the layering (ARCHITECTURE.md).")
    endif()
  endforeach()
endfunction()

function(_baton_tidy target)
  if(BATON_TIDY)
    set_target_properties(${target} PROPERTIES CXX_CLANG_TIDY "${CLANG_TIDY};--quiet")
  endif()
endfunction()

function(baton_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPS;PRIVATE_DEPS")
  _baton_check_deps(baton::${name} ${arg_DEPS} ${arg_PRIVATE_DEPS})
  if(arg_SOURCES)
    add_library(baton_${name} STATIC ${arg_SOURCES})
    target_include_directories(baton_${name} PUBLIC ${PROJECT_SOURCE_DIR})
    target_link_libraries(baton_${name} PUBLIC ${arg_DEPS} PRIVATE ${arg_PRIVATE_DEPS} baton_flags)
    _baton_tidy(baton_${name})
  else()
    add_library(baton_${name} INTERFACE)
    target_include_directories(baton_${name} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(baton_${name} INTERFACE ${arg_DEPS})
  endif()
  add_library(baton::${name} ALIAS baton_${name})
endfunction()

function(baton_binary name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPS")
  _baton_check_deps(${name} ${arg_DEPS})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} baton_flags)
  _baton_tidy(${name})
endfunction()

# libbaton_cuda.so in DIRECTORY. Has one entry, is loaded when a GPU is asked for, and shares nothing else with the
# program that loads it.
function(baton_cuda_module name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "DIRECTORY" "SOURCES;DEPS")
  _baton_check_deps(${name} ${arg_DEPS})
  add_library(${name} MODULE ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} baton_flags)
  target_compile_options(${name} PRIVATE -fvisibility=hidden)
  set_target_properties(${name} PROPERTIES OUTPUT_NAME baton_cuda LIBRARY_OUTPUT_DIRECTORY ${arg_DIRECTORY})
  _baton_tidy(${name})
endfunction()

# How many times slower than usual everything is, for tests that take that into account.
set(BATON_TEST_SLOWNESS 1)
if(BATON_SANITIZE MATCHES "thread")
  set(BATON_TEST_SLOWNESS 10)
elseif(BATON_SANITIZE)
  set(BATON_TEST_SLOWNESS 3)
endif()

# The second option is against a mistake of LeakSanitizer (google/sanitizers#1353): it takes a library's thread-local
# memory at some addresses for that of a glibc before 2.25, and looks for pointers where nothing is. Such memory is on
# the heap, so pointers in it are found without that, too.
set(BATON_ASAN_OPTIONS "detect_leaks=1:intercept_tls_get_addr=0")

# What every test runs with.
set(BATON_TEST_ENVIRONMENT
  "BATON_BIN_DIR=${PROJECT_BINARY_DIR}/bin"
  "UCX_MEM_MMAP_HOOK_MODE=none" "UCX_MEM_EVENTS=n"
  "ASAN_OPTIONS=${BATON_ASAN_OPTIONS}"
  "LSAN_OPTIONS=print_suppressions=0 suppressions=${PROJECT_SOURCE_DIR}/tests/lsan.supp"
  "TSAN_OPTIONS=ignore_noninstrumented_modules=1 suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp")

# `name`.cc, or MAIN, is the test's source; SOURCES adds others. ENVIRONMENT: for this test alone.
function(baton_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT;MAIN" "DEPS;LABELS;SOURCES;ENVIRONMENT")
  _baton_check_deps(${name} ${arg_DEPS})
  if(NOT arg_MAIN)
    set(arg_MAIN ${name}.cc)
  endif()
  add_executable(${name} ${arg_MAIN} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} GTest::gmock_main baton_flags)
  # Tests are compiled more often than they run: -O1 halves their build time.
  target_compile_options(${name} PRIVATE $<$<CONFIG:RelWithDebInfo,Release>:-O1>)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(BATON_SANITIZE)  # Everything is several times slower.
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 4")
  endif()
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "${BATON_TEST_ENVIRONMENT};${arg_ENVIRONMENT}")
endfunction()
