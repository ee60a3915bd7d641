"""coremltools' builder of MIL programs, `mb`: its operations are made at import, where no type checker sees them."""

from __future__ import annotations

from typing import Any

from coremltools.converters.mil.mil import Builder

mb: Any = Builder
