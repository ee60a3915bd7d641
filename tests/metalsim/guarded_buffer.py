"""Memory whose neighbours cannot be touched: an access outside a buffer faults, and so does a write to an input."""

from __future__ import annotations

import ctypes
import mmap

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

_PAGE = mmap.PAGESIZE
_ALIGNMENT = 16


class GuardedBuffer:
    """A copy of `data` between two unmapped pages, against the second (but for alignment to 16 bytes) or the first."""

    def __init__(self, name: str, data: bytes, writable: bool, at_start: bool = False) -> None:
        self.name = name
        self.size = len(data)
        body = max(1, -(-self.size // _PAGE)) * _PAGE
        self._total = body + 2 * _PAGE
        self._base = _libc.mmap(
            None, self._total, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
        )
        slack = 0 if at_start else body - -(-self.size // _ALIGNMENT) * _ALIGNMENT
        self.start = self._base + _PAGE + slack
        ctypes.memmove(self.start, data, self.size)
        _libc.mprotect(self._base, _PAGE, 0)
        _libc.mprotect(self._base + _PAGE + body, _PAGE, 0)
        if not writable:
            _libc.mprotect(self._base + _PAGE, body, mmap.PROT_READ)

    @property
    def end(self) -> int:
        return self.start + self.size

    def read(self) -> bytes:
        return ctypes.string_at(self.start, self.size)

    def free(self) -> None:
        _libc.munmap(self._base, self._total)
