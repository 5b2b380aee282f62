"""What build systems read: CMake's package configuration and pkg-config's metadata."""

from __future__ import annotations

from typing import Final

from dlcc.artifact.packaging.facts import Delivery

_PROCESSORS: Final = {
    "x86_64": "x86_64|amd64|AMD64",
    "aarch64": "aarch64|arm64|ARM64",
    "armv7": "armv[78].*|armhf|arm",
}
"""What CMake calls a processor, by the architecture of the triple."""

_HEAD: Final = """\
# Gives the target @name@::@name@ to find_package(@name@ CONFIG), with this folder in
# CMAKE_PREFIX_PATH or as @name@_DIR. @name@_WEIGHTS is the path of the weights file, empty where
# the weights are in the library.
set(@name@_WEIGHTS "@weights@")
if(TARGET @name@::@name@)
  return()
endif()
"""

_PROCESSOR: Final = """\
if(CMAKE_SYSTEM_PROCESSOR AND NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(@processors@)$")
  set(@name@_FOUND FALSE)
  set(@name@_NOT_FOUND_MESSAGE
      "the network was compiled for @architecture@, this build is for ${CMAKE_SYSTEM_PROCESSOR}")
  return()
endif()
"""

_SYSTEM: Final = """\
if(NOT APPLE)
  set(@name@_FOUND FALSE)
  set(@name@_NOT_FOUND_MESSAGE
      "the network was compiled for macOS, this build is for ${CMAKE_SYSTEM_NAME}")
  return()
endif()
"""

_THREADS: Final = """\
include(CMakeFindDependencyMacro)
find_dependency(Threads)
"""

_TARGETS: Final = {
    "so": """\
add_library(@name@::@name@ SHARED IMPORTED)
set_target_properties(@name@::@name@ PROPERTIES
  IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/@shared@"
  IMPORTED_SONAME "@install@@shared@"
  INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
""",
    "a": """\
add_library(@name@::@name@ STATIC IMPORTED)
set_target_properties(@name@::@name@ PROPERTIES
  IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/lib@name@.a"
  IMPORTED_LINK_INTERFACE_LANGUAGES C
@threads@  INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
""",
    "o": """\
add_library(@name@::@name@ INTERFACE IMPORTED)
set_target_properties(@name@::@name@ PROPERTIES
  INTERFACE_LINK_LIBRARIES "${CMAKE_CURRENT_LIST_DIR}/@name@.o@and_threads@"
  INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
""",
    "c": """\
add_library(@name@_network STATIC "${CMAKE_CURRENT_LIST_DIR}/@name@.c")
set_target_properties(@name@_network PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(@name@_network PUBLIC "${CMAKE_CURRENT_LIST_DIR}")
add_library(@name@::@name@ ALIAS @name@_network)
""",
}


def cmake_config(delivery: Delivery) -> str:
    """``<name>Config.cmake``.

    Of several forms the shared library is taken, unless ``<name>_USE_STATIC_LIBS`` is set.
    """
    shared = "so" in delivery.emit
    static = next((kind for kind in ("a", "o", "c") if kind in delivery.emit), None)
    body = _TARGETS["so"] if shared else ""
    if static is not None:
        body = (_THREADS if delivery.threads else "") + _TARGETS[static]
    if shared and static is not None:
        body = (
            f"if(@name@_USE_STATIC_LIBS)\n{_indented(body)}else()\n"
            f"{_indented(_TARGETS['so'])}endif()\n"
        )
    weights = "" if delivery.embed else f"${{CMAKE_CURRENT_LIST_DIR}}/{delivery.symbol}.weights"
    processors = "" if delivery.bare else _PROCESSORS.get(delivery.architecture)
    system = _SYSTEM if delivery.macos else ""
    linked = ["Threads::Threads"] if delivery.threads else []
    linked += ["${CMAKE_DL_LIBS}"] if delivery.program.device else []
    return _fill(
        _HEAD + system + (_PROCESSOR if processors else "") + body,
        delivery,
        weights=weights,
        processors=processors or "",
        threads=f"  INTERFACE_LINK_LIBRARIES {_cmake_list(linked)}\n" if linked else "",
        and_threads="".join(f";{library}" for library in linked),
        shared=delivery.library("so"),
        install="@rpath/" if delivery.macos else "",
        architecture=delivery.architecture,
    )


def _cmake_list(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f'"{";".join(values)}"'


def pkg_config(delivery: Delivery) -> str:
    """``<name>.pc``; its paths are relative to the folder it lies in."""
    needed = "".join(f" {library}" for library in delivery.libraries)
    libraries = {
        "so": "-L${prefix} -l@name@",
        "a": f"-L${{prefix}} -l@name@{needed}",
        "o": f"${{prefix}}/@name@.o{needed}",
    }[delivery.kind]
    private = f"Libs.private:{needed}\n" if delivery.kind == "so" and needed else ""
    weights = "" if delivery.embed else "weights=${prefix}/@name@.weights\n"
    text = (
        "prefix=${pcfiledir}\n"
        f"{weights}\n"
        "Name: @name@\n"
        "Description: a neural network compiled by dlcc for @architecture@\n"
        "Version: 1\n"
        "Cflags: -I${prefix}\n"
        f"Libs: {libraries}\n{private}"
    )
    return _fill(text, delivery, architecture=delivery.architecture)


def _indented(text: str) -> str:
    return "".join(f"  {line}" for line in text.splitlines(keepends=True))


def _fill(text: str, delivery: Delivery, **values: str) -> str:
    for key, value in {"name": delivery.symbol, **values}.items():
        text = text.replace(f"@{key}@", value)
    return text
