"""Read and replace the addresses through which a loaded shared library calls functions of other libraries.

On Linux every such call goes through a slot of the library's procedure linkage table, filled in by the dynamic linker
(System V ABI, "Dynamic Linking"; ELF-64 with RELA relocations, as on x86-64 and arm64).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

_RTLD_DI_LINKMAP = 2
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_JMPREL = 0, 2, 5, 6, 23
_SYMBOL_SIZE = 24
_RELOCATION = struct.Struct("<QQq")  # offset of the slot, symbol index << 32 | type, addend


class _LinkMap(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t))


class _Location(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def import_slots(library: ctypes.CDLL) -> dict[str, int]:
    """Return, for every function that `library` imports, the address of the slot that holds the function's address.

    Raises OSError on a machine whose tables are laid out in another way.
    """
    if platform.libc_ver()[0] != "glibc" or platform.machine() not in ("x86_64", "aarch64"):
        raise OSError(f"linkage tables are known for glibc on x86-64 and arm64, not for {platform.platform()}")
    link_map = _link_map(library)
    dynamic = dict(_dynamic_entries(link_map.dynamic))
    if _DT_JMPREL not in dynamic:
        return {}
    names, symbols = dynamic[_DT_STRTAB], dynamic[_DT_SYMTAB]
    slots = {}
    for offset, info, _ in _RELOCATION.iter_unpack(ctypes.string_at(dynamic[_DT_JMPREL], dynamic[_DT_PLTRELSZ])):
        name_offset = ctypes.c_uint32.from_address(symbols + (info >> 32) * _SYMBOL_SIZE).value
        slots[ctypes.string_at(names + name_offset).decode()] = link_map.base + offset
    return slots


def read_slot(slot: int) -> int:
    """Return the address that calls through `slot` go to."""
    return ctypes.c_size_t.from_address(slot).value


def write_slot(slot: int, address: int) -> None:
    """Send calls through `slot` to `address`; raises OSError if its page cannot be made writable."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = slot - slot % mmap.PAGESIZE
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "the linkage table cannot be made writable")
    ctypes.c_size_t.from_address(slot).value = address


def symbol_address(library: ctypes.CDLL, name: str) -> int | None:
    """Return where `library`, or one that it depends on, defines `name`; None if nowhere."""
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError:
        return None


def library_of(address: int) -> Path | None:
    """Return the file of the loaded library that `address` lies in."""
    found = _Location()
    if not ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(found)) or not found.file:
        return None
    return Path(found.file.decode())


def _link_map(library: ctypes.CDLL) -> _LinkMap:
    pointer = ctypes.POINTER(_LinkMap)()
    if ctypes.CDLL(None).dlinfo(ctypes.c_void_p(library._handle), _RTLD_DI_LINKMAP, ctypes.byref(pointer)):
        raise OSError(f"the dynamic linker does not tell where {library._name} is loaded")
    return pointer.contents


def _dynamic_entries(address: int) -> Iterator[tuple[int, int]]:
    while (tag := ctypes.c_int64.from_address(address).value) != _DT_NULL:
        yield tag, ctypes.c_uint64.from_address(address + 8).value
        address += 16
